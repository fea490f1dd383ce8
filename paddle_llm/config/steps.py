"""What a number of optimizer steps means for warm-up, schedule, evaluations and checkpoints.

The number is known at once with `--max_steps`, and after the data is read with `--num_train_epochs`: the same checks run
at both times.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from typing import Any

from paddle_llm.config.run_config import RunConfig


def warmup_of(config: RunConfig, steps: int) -> int:
    """Return the warm-up in steps; `warmup_steps` wins over `warmup_ratio`, as in PaddleNLP."""
    return config.warmup_steps if config.warmup_steps > 0 else int(config.warmup_ratio * steps)


def schedule_of(config: RunConfig, steps: int) -> dict[str, Any]:
    """Return what the learning rate of every step follows from, apart from the peak: type, warm-up, decay and minimum."""
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


def warmup_problems(config: RunConfig, steps: int | None) -> Iterator[str]:
    """What is wrong with the warm-up of a training.

    Args:
        steps: length of the training; None where it is not known yet.
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
        f"{name} is not shorter than the learning-rate schedule, which ends at step {end}: the learning rate would never come "
        "down. Use a shorter warm-up or a longer training."
    )


def step_notices(config: RunConfig, steps: int, asked: Container[str], training: str) -> Iterator[str]:
    """What does not happen within a training of `steps`.

    Args:
        asked: fields that the user has set.
        training: how its length is named, such as "max_steps 10".
    """
    if "warmup_ratio" in asked and config.warmup_ratio > 0 and warmup_of(config, steps) == 0:
        yield f"warmup_ratio {config.warmup_ratio:g} of {steps} steps is less than one step: there is no warm-up."
    if (
        config.decay_steps is not None
        and config.decay_steps > steps
        and config.lr_scheduler_type in ("cosine", "linear")
    ):
        yield (
            f"decay_steps {config.decay_steps} > {training}: the learning rate does not reach min_learning_rate within "
            "this training."
        )
    evaluates = config.do_eval and config.evaluation_strategy in (None, "steps")
    events: list[tuple[bool, str, str]] = [
        (evaluates, "eval_steps", "evaluation"),
        (config.save_strategy == "steps", "save_steps", "checkpoint"),
        (not config.logging_first_step, "logging_steps", "loss"),
    ]
    for happens, name, what in events:
        if happens and getattr(config, name) > steps:
            yield f"{name} {getattr(config, name)} > {training}: no {what} before the last step."


def report_counted_steps(config: RunConfig, steps: int, origins: dict[str, str], report: Callable[[str], None]) -> None:
    """Report what does not fit the length of a training that is counted in epochs, when the data is known.

    A warm-up that is too long is reported, not refused as with `--max_steps`: published commands with `--num_train_epochs 1
    --warmup_steps 20` are tried on a few rows first.

    Args:
        origins: of the resolved config; tells what the user has set.
        report: is called with each notice.
    """
    if config.max_steps > 0:  # checked by the rules already
        return
    for problem in warmup_problems(config, steps):
        report(f"warning: {problem} (num_train_epochs = {config.num_train_epochs:g} of this data: {steps} steps.)")
    asked = {name for name, origin in origins.items() if not origin.startswith(("default", "derived"))}
    for line in step_notices(config, steps, asked, f"the {steps} steps of {config.num_train_epochs:g} epochs"):
        report(line)
