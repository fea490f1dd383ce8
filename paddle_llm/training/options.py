"""Settings of PretrainTrainer beyond PaddleNLP's TrainingArguments."""

from __future__ import annotations

from dataclasses import dataclass

import paddle

from paddle_llm.config.run_config import RunConfig
from paddle_llm.families.facts import ModelFacts
from paddle_llm.planner.flops import flops_per_token, peak_flops


@dataclass(frozen=True)
class TrainerOptions:
    """Settings of PretrainTrainer beyond PaddleNLP's TrainingArguments.

    Attributes:
        min_learning_rate: Learning rate below which the schedule never falls.
        decay_steps: Step at which the schedule reaches its minimum; None for the last step.
        nan_policy: "stop", "skip" to skip the update of a non-finite step, or "rollback" to go back to a checkpoint.
        max_rollbacks: Number of rollbacks after which the training stops.
        spike_policy: "mark", or "skip" to skip the update of a step whose loss is a spike.
        flops_per_token: Model FLOPs per token, for MFU; None if unknown.
        peak_flops: Peak FLOPs per second of one device, for MFU; None if unknown.
        curves: Whether VisualDL curves are written beside metrics.jsonl.
        offload_weights: Whether weights that are not in use are kept in host memory in sharding stage 3.
        continue_without_save: Whether the training continues if a checkpoint cannot be written.
        async_save: Whether another process writes checkpoints while the training goes on.
    """

    min_learning_rate: float = 0.0
    decay_steps: int | None = None
    nan_policy: str = "stop"
    max_rollbacks: int = 3
    spike_policy: str = "mark"
    flops_per_token: float | None = None
    peak_flops: float | None = None
    curves: bool = True
    offload_weights: bool = False
    continue_without_save: bool = False
    async_save: bool = False


def weights_dtype(config: RunConfig) -> str:
    """Return the data type of the weights: 16 bits with O2, float32 with any other level."""
    if config.device == "cpu" or config.fp16_opt_level != "O2":
        return "float32"
    return "bfloat16" if config.bf16 else "float16" if config.fp16 else "float32"


def trainer_options(config: RunConfig, facts: ModelFacts) -> TrainerOptions:
    """Return the options of a job.

    Args:
        config: Configuration from the reader, which has turned off what the device does not support.
        facts: Facts of the model.
    """
    precision = "bfloat16" if config.bf16 else "float16" if config.fp16 else "float32"
    name = paddle.device.cuda.get_device_name() if config.device != "cpu" else None
    return TrainerOptions(
        min_learning_rate=config.min_learning_rate or 0.0,
        decay_steps=config.decay_steps,
        nan_policy=config.nan_policy,
        max_rollbacks=config.max_rollbacks,
        spike_policy=config.spike_policy,
        flops_per_token=flops_per_token(facts, config.max_seq_length),
        peak_flops=None if name is None else peak_flops(name, precision),
        curves="visualdl" in config.report_to or "all" in config.report_to,
        offload_weights=config.sharding_offload,
        continue_without_save=config.save_failure == "continue",
        async_save=config.async_save,
    )
