"""The learning-rate schedule, and checks of warm-up, schedule, evaluations and checkpoints against the number of steps.

The learning rate is a function of the step: linear warm-up, then cosine, linear, polynomial or constant. With `--max_steps` the number is known at once, with `--num_train_epochs` only after the data is read. The same checks run in
both cases.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterator
from typing import Any

from paddle_llm.config.run_config import RunConfig
from paddle_llm.core.counts import counted


def warmup_of(config: RunConfig, steps: int) -> int:
    """Return the length of the warm-up in steps; `warmup_steps` takes precedence over `warmup_ratio`, as in PaddleNLP."""
    return config.warmup_steps if config.warmup_steps > 0 else int(config.warmup_ratio * steps)


def schedule_of(config: RunConfig, steps: int) -> dict[str, Any]:
    """Return the settings that determine the learning rate of every step."""
    kind = config.lr_scheduler_type
    found: dict[str, Any] = {"lr_scheduler_type": kind, "learning_rate": config.learning_rate}
    if kind == "constant":
        return found
    found["warmup_steps"] = warmup_of(config, steps)
    if kind == "constant_with_warmup":
        return found
    found["decay_steps"] = config.decay_steps or steps
    if kind == "polynomial":
        return {**found, "lr_end": config.lr_end, "power": config.power}
    return {**found, "min_learning_rate": config.min_learning_rate}


def learning_rate_factor(
    step: int, *, kind: str, warmup_steps: int, decay_steps: int, min_ratio: float, power: float
) -> float:
    """Return the learning rate of an optimizer step, relative to the peak.

    Warm-up rises linearly to the peak over `warmup_steps`. The first step uses peak / warmup_steps: zero would waste
    it. Afterwards the rate falls to `min_ratio` of the peak at `decay_steps` and stays there ("cosine": half a wave,
    Loshchilov & Hutter 2017 without restarts).

    Args:
        step: Optimizer step, 0 for the first.
        kind: Value of lr_scheduler_type.
        warmup_steps: Length of the warm-up.
        decay_steps: Step at which the minimum is reached.
        min_ratio: Minimum, relative to the peak.
        power: Exponent of "polynomial".
    """
    if kind == "constant":  # without a warm-up, as in PaddleNLP; "constant_with_warmup" has one
        return 1.0
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    span = max(1, decay_steps - warmup_steps)
    progress = min(1.0, (step - warmup_steps) / span)
    if kind == "constant_with_warmup":
        return 1.0
    if kind == "linear":
        shape = 1.0 - progress
    elif kind == "cosine":
        shape = 0.5 * (1.0 + math.cos(math.pi * progress))
    elif kind == "polynomial":
        shape = (1.0 - progress) ** power
    else:
        raise ValueError(f"unknown lr_scheduler_type {kind!r}")
    return min_ratio + (1.0 - min_ratio) * shape


def learning_rate_at(schedule: dict[str, Any], step: int) -> float:
    """Return the learning rate of an optimizer step.

    Args:
        schedule: Settings from `schedule_of`.
        step: Optimizer step, 0 for the first.
    """
    kind, peak = schedule["lr_scheduler_type"], schedule["learning_rate"]
    final = schedule.get("lr_end" if kind == "polynomial" else "min_learning_rate") or 0.0
    return float(
        peak
        * learning_rate_factor(
            step,
            kind=kind,
            warmup_steps=schedule.get("warmup_steps", 0),
            decay_steps=schedule.get("decay_steps", 0),
            min_ratio=final / peak,
            power=schedule.get("power", 1.0),
        )
    )


def warmup_problems(config: RunConfig, steps: int | None) -> Iterator[str]:
    """Yield a message if the warm-up does not fit the training.

    Args:
        config: Config of the run.
        steps: Length of the training; None if it is not known yet.
    """
    kind = config.lr_scheduler_type
    end = config.decay_steps if config.decay_steps is not None and kind != "constant_with_warmup" else steps
    if end is None or kind == "constant":
        return
    ratio = config.warmup_steps == 0
    if ratio and steps is None:
        return
    warmup = warmup_of(config, steps or 0)
    if warmup == 0 or warmup < end or (kind == "constant_with_warmup" and warmup == end):
        return
    name = f"warmup_ratio = {config.warmup_ratio:g} ({warmup} steps)" if ratio else f"warmup_steps = {warmup}"
    yield (
        f"{name} is not shorter than the learning-rate schedule, which ends at step {end}: the learning rate would never fall. "
        "Use a shorter warm-up or a longer training."
    )


def step_notices(config: RunConfig, steps: int, requested: Container[str], training: str) -> Iterator[str]:
    """Yield a notice for each event that does not happen within the training.

    Args:
        config: Config of the run.
        steps: Length of the training.
        requested: Names of the fields that the user set.
        training: Description of the length, such as "max_steps = 10".
    """
    if "warmup_ratio" in requested and config.warmup_ratio > 0 and warmup_of(config, steps) == 0:
        yield f"warmup_ratio = {config.warmup_ratio:g} of {steps} steps is less than one step: the run has no warm-up."
    if (
        config.decay_steps is not None
        and config.decay_steps > steps
        and config.lr_scheduler_type in ("cosine", "linear")
    ):
        yield (
            f"decay_steps = {config.decay_steps} is more than {training}: the learning rate does not reach min_learning_rate in "
            "this run."
        )
    evaluates = config.do_eval and config.evaluation_strategy in (None, "steps")
    events: list[tuple[bool, str, str]] = [
        (evaluates, "eval_steps", "the model is not evaluated"),
        (config.save_strategy == "steps", "save_steps", "no checkpoint is written"),
        (not config.logging_first_step, "logging_steps", "no loss is logged"),
    ]
    for is_on, name, consequence in events:
        if is_on and getattr(config, name) > steps:
            yield f"{name} = {getattr(config, name)} is more than {training}: {consequence} before the last step."


def report_counted_steps(config: RunConfig, steps: int, origins: dict[str, str], report: Callable[[str], None]) -> None:
    """Report settings that do not fit a training whose length in epochs is known in steps only after the data is read.

    A warm-up that is too long is reported and not refused as with `--max_steps`: users try published commands with
    `--num_train_epochs 1 --warmup_steps 20` on a few rows first.

    Args:
        config: Config of the run.
        steps: Length of the training.
        origins: Origin of each field in the resolved config.
        report: Function that is called with each notice.
    """
    if config.max_steps > 0:  # checked by the rules already
        return
    for problem in warmup_problems(config, steps):
        report(
            f"warning: {problem} With this data, num_train_epochs = {config.num_train_epochs:g} means {counted(steps, 'step')}."
        )
    requested = {name for name, origin in origins.items() if not origin.startswith(("default", "derived"))}
    for line in step_notices(
        config, steps, requested, f"the {counted(steps, 'step')} of num_train_epochs = {config.num_train_epochs:g}"
    ):
        report(line)
