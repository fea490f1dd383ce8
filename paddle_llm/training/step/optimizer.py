"""The learning-rate schedule and the optimizer of a trainer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import paddle

from paddle_llm.config.steps import learning_rate_factor, warmup_of
from paddle_llm.training.metrics.grad_norm import RecordingClip
from paddle_llm.training.options import TrainerOptions

if TYPE_CHECKING:
    from paddlenlp.trainer import TrainingArguments

    from paddle_llm.models.protocols import LanguageModel


def build_schedule(args: TrainingArguments, options: TrainerOptions, steps: int) -> paddle.optimizer.lr.LRScheduler:
    """Return the learning-rate schedule of `config/steps.py`.

    Args:
        args: Arguments of the training.
        options: Settings beyond the arguments.
        steps: Optimizer steps of the whole training.
    """
    peak = args.learning_rate
    is_polynomial = args.lr_scheduler_type.value == "polynomial"
    final = args.lr_end if is_polynomial else options.min_learning_rate
    settings = {
        "kind": args.lr_scheduler_type.value,
        "warmup_steps": warmup_of(args, steps),
        "decay_steps": options.decay_steps or steps,
        "min_ratio": final / peak if peak else 0.0,
        "power": args.power,
    }
    return paddle.optimizer.lr.LambdaDecay(peak, lambda step: learning_rate_factor(step, **settings))


def restore_schedule(scheduler: paddle.optimizer.lr.LRScheduler, state: dict[str, Any]) -> None:
    """Continue a schedule at the step of a checkpoint.

    The state contains the learning rate of the next step. If the schedule has changed since, it is that of the old one.

    Args:
        scheduler: Schedule of this training.
        state: State of the schedule in the checkpoint.
    """
    scheduler.set_state_dict(state)
    apply_schedule(scheduler)


def apply_schedule(scheduler: paddle.optimizer.lr.LRScheduler) -> None:
    """Compute the learning rate of the next step with the schedule of this training, after a state was loaded."""
    if isinstance(scheduler, paddle.optimizer.lr.LambdaDecay):
        scheduler.last_lr = scheduler.get_lr()


def correct_optimizer(optimizer: paddle.optimizer.Optimizer, model: LanguageModel, max_grad_norm: float) -> None:
    """Replace the clip of PaddleNLP's optimizer with one that reports the norm, and restrict weight decay to matrices.

    PaddleNLP excludes names that contain "norm" or "bias" from weight decay. That leaves decay on BLOOM's ln_f and, in
    a pipeline, on ChatGLM2's final norm, whose name is a number there.

    Args:
        optimizer: Optimizer from PaddleNLP; changed in place.
        model: Model whose parameters it updates.
        max_grad_norm: Largest gradient norm after clipping; 0 or less for no clipping.
    """
    optimizer._grad_clip = RecordingClip(max_grad_norm)
    if optimizer._apply_decay_param_fun is not None:
        matrices = {parameter.name for parameter in model.parameters() if parameter.ndim > 1}
        optimizer._apply_decay_param_fun = matrices.__contains__
