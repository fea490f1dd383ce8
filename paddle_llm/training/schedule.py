"""Learning rate as a function of the step: linear warm-up, then cosine, linear or constant, never below a minimum."""

from __future__ import annotations

import math


def learning_rate_factor(
    step: int, *, kind: str, warmup_steps: int, decay_steps: int, min_ratio: float, num_cycles: float, power: float
) -> float:
    """Learning rate of optimizer step `step` (0 for the first), relative to the peak.

    Warm-up goes linearly to the peak over `warmup_steps`: the first step is taken with peak / warmup_steps, not with
    zero, which would waste it. Afterwards the rate falls to `min_ratio` of the peak at `decay_steps` and stays there
    ("cosine": Loshchilov & Hutter 2017 without restarts; `num_cycles` 0.5 is half a wave).
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
        shape = 0.5 * (1.0 + math.cos(math.pi * 2.0 * num_cycles * progress))
    elif kind == "polynomial":
        shape = (1.0 - progress) ** power
    else:
        raise ValueError(f"unknown lr_scheduler_type {kind!r}")
    return min_ratio + (1.0 - min_ratio) * shape


def resolve_warmup_steps(warmup_steps: int, warmup_ratio: float, total_steps: int) -> int:
    """`warmup_steps` wins over `warmup_ratio`, as in PaddleNLP."""
    return warmup_steps if warmup_steps > 0 else int(warmup_ratio * total_steps)
