"""What PretrainTrainer is told beside TrainingArguments."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TrainerOptions:
    """What PretrainTrainer takes beyond PaddleNLP's TrainingArguments.

    Attributes:
        min_learning_rate: the schedule never falls below it.
        decay_steps: where the schedule reaches its minimum; None: the last step.
        nan_policy: "stop", or "skip" the update of a step whose loss is not finite.
        flops_per_token, peak_flops: for MFU; None where unknown.
        curves: write VisualDL curves beside metrics.jsonl.
        offload_weights: in sharding stage 3, weights that nobody computes with lie in host memory.
    """

    min_learning_rate: float = 0.0
    decay_steps: int | None = None
    nan_policy: str = "stop"
    flops_per_token: float | None = None
    peak_flops: float | None = None
    curves: bool = True
    offload_weights: bool = False
