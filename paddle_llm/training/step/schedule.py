"""Learning rate as a function of the step: linear warm-up, then cosine, linear or constant, never below a minimum."""

from __future__ import annotations

import math


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
