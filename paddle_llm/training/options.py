"""What PretrainTrainer is told beside TrainingArguments."""

from __future__ import annotations

from dataclasses import dataclass

import paddle

from paddle_llm.config.reader import Resolved
from paddle_llm.config.run_config import RunConfig
from paddle_llm.planner.flops import flops_per_token, peak_flops


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


def weights_dtype(config: RunConfig) -> str:
    """O2 holds the weights in 16 bits; everything else in float32."""
    if config.device == "cpu" or config.fp16_opt_level != "O2":
        return "float32"
    return "bfloat16" if config.bf16 else "float16" if config.fp16 else "float32"


def trainer_options(resolved: Resolved) -> TrainerOptions:
    """What a job's config says of them."""
    config = resolved.config
    on_gpu = config.device != "cpu"
    precision = "bfloat16" if config.bf16 else "float16" if config.fp16 else "float32"
    return TrainerOptions(
        min_learning_rate=config.min_learning_rate or 0.0,
        decay_steps=config.decay_steps,
        nan_policy=config.nan_policy,
        flops_per_token=flops_per_token(resolved.facts, config.max_seq_length),
        peak_flops=peak_flops(paddle.device.cuda.get_device_name(), precision) if on_gpu else None,
        curves="visualdl" in config.report_to or "all" in config.report_to,
        offload_weights=config.sharding_offload and on_gpu,
    )
