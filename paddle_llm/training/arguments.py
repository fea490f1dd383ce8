"""Convert a RunConfig to PaddleNLP's TrainingArguments, once and late, because their constructor initialises fleet.

PaddleNLP changes some arguments without a message. After construction, every given value is compared with the one in
the object. A difference that is not expected here is reported as an internal error.
"""

from __future__ import annotations

import dataclasses
from enum import Enum
from importlib.util import find_spec
from typing import Any

import paddle
from paddlenlp.trainer import TrainingArguments

from paddle_llm.config.layout import Layout
from paddle_llm.config.paddle_switches import active_switches
from paddle_llm.config.rules.settings import REPORTERS
from paddle_llm.config.run_config import RunConfig
from paddle_llm.core.artifacts import CURVES_FOLDER
from paddle_llm.core.errors import UserError
from paddle_llm.parallel.process import failure_detection

_SINGLE = -1  # PaddleNLP's value for "degree not set"


class SilentChangeError(RuntimeError):
    """PaddleNLP has changed an argument unexpectedly."""


def training_arguments(config: RunConfig, layout: Layout) -> TrainingArguments:
    """Return the TrainingArguments of a run; initialise the process groups and the detection of lost ranks.

    Args:
        config: Configuration of the job.
        layout: Layout of the job.

    Raises:
        SilentChangeError: If PaddleNLP has changed an argument.
    """
    given = _arguments(config, layout)
    args = TrainingArguments(**given)
    if config.device != "cpu":
        failure_detection.start_on_gpus()
    changed = {
        name: (value, getattr(args, name, None))
        for name, value in given.items()
        if name not in ("sharding", *_DERIVED) and not _same(value, getattr(args, name, None))
    }
    if changed:
        differences = "; ".join(f"{name}: given {was!r}, now {now!r}" for name, (was, now) in changed.items())
        raise SilentChangeError(f"PaddleNLP has changed arguments: {differences}")
    if args.world_size > 1 and args.dataset_world_size != layout.data_world_size:
        raise SilentChangeError(f"PaddleNLP has {args.dataset_world_size} data ranks, but the layout is {layout}")
    return args


# PaddleNLP derives these from the degrees and the launch; they are compared with the layout.
_DERIVED = (
    "tensor_parallel_degree",
    "pipeline_parallel_degree",
    "sharding_parallel_degree",
    "sep_parallel_degree",
)


def _arguments(config: RunConfig, layout: Layout) -> dict[str, Any]:
    names = {field.name for field in dataclasses.fields(TrainingArguments) if field.init}
    given = {
        name: getattr(config, name)
        for name in RunConfig.model_fields
        if name in names and getattr(config, name) is not None
    }
    on_gpu = config.device != "cpu"
    given |= {
        "bf16": config.bf16 and on_gpu,
        "fp16": config.fp16 and on_gpu,
        "amp_master_grad": config.amp_master_grad and on_gpu and (config.bf16 or config.fp16),
        "tensor_parallel_degree": _degree(layout.tensor),
        "pipeline_parallel_degree": _degree(layout.pipeline),
        "sharding_parallel_degree": _degree(layout.sharding),
        "sharding": _sharding(layout),
        # Without the words of our stages 2 and 3, which are stage 1 for PaddleNLP.
        **active_switches(config, layout),
        # PaddleNLP accepts the word "offload" only with its own stages 2 and 3, which are not used here.
        "offload_optim": (config.offload_optim or config.sharding_offload) and on_gpu,
        "do_eval": config.do_eval,
        "evaluation_strategy": (config.evaluation_strategy or "steps") if config.do_eval else "no",
        "per_device_eval_batch_size": eval_batch_size(config, layout),
        "max_evaluate_steps": config.eval_iters,
        # Our own callbacks write bars, lines and curves.
        "report_to": _other_reports(config.report_to),
        "disable_tqdm": config.disable_tqdm,
        "logging_dir": f"{config.output_dir}/{CURVES_FOLDER}",
    }
    given.pop("resume_from_checkpoint", None)
    return given


def eval_batch_size(config: RunConfig, layout: Layout) -> int:
    """Return the samples per rank and evaluation batch; a pipeline evaluates in its training micro-batches."""
    if layout.pipeline > 1:
        return config.per_device_train_batch_size * config.gradient_accumulation_steps
    return config.per_device_eval_batch_size


def _degree(value: int) -> int:
    return value if value > 1 else _SINGLE


def _sharding(layout: Layout) -> str:
    """Return PaddleNLP's sharding: stage 1 for every stage (`training/sharding.py` shards gradients and weights)."""
    return "stage1" if layout.sharding > 1 and layout.sharding_stage else ""


def _other_reports(report_to: list[str]) -> list[str]:
    """Return the reporters beside our own curves; "all" selects those that are installed."""
    if "all" in report_to:
        return [name for name, package in REPORTERS.items() if name != "visualdl" and find_spec(package) is not None]
    return [name for name in report_to if name not in ("visualdl", "none")]


def _same(given: Any, now: Any) -> bool:
    if isinstance(now, Enum) and not isinstance(given, Enum):
        now = now.value
    return given == now


def check_device(args: TrainingArguments | None) -> None:
    """Check that Paddle is on the CPU if TrainingArguments request it; they do not set the device (PaddleNLP 3.0.0b4).

    Raises:
        UserError: If Paddle is on another device.
    """
    found = paddle.get_device()
    if args is not None and args.device == "cpu" and found != "cpu":
        raise UserError(
            f'TrainingArguments(device="cpu"), but Paddle is on {found}. Call paddle.set_device("cpu") before the model is built.'
        )


def layout_of(args: TrainingArguments) -> Layout:
    """Return the layout of TrainingArguments that were built without `training_arguments`.

    Raises:
        UserError: If PaddleNLP's own sharding stage 2 or 3 is requested.
    """
    stages = [option.value for option in args.sharding if option.value in ("stage2", "stage3")]
    if stages:
        raise UserError(
            f"TrainingArguments request PaddleNLP's sharding {stages[0]}, but PretrainTrainer shards gradients itself. "
            "Build the arguments with paddle_llm.training.arguments.training_arguments."
        )
    return Layout(
        data=max(args.data_parallel_degree, 1),
        sharding=max(args.sharding_parallel_degree, 1),
        tensor=max(args.tensor_parallel_degree, 1),
        pipeline=max(args.pipeline_parallel_degree, 1),
        sharding_stage=1 if args.sharding else 0,
        sequence_parallel=args.sequence_parallel,
    )
