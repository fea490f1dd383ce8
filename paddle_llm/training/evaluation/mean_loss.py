"""The mean loss of a data set over all labels and all ranks, exact for padded batches."""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import paddle
import paddle.distributed as dist

from paddle_llm.data.counted_batches import LABEL_COUNT, TOKEN_COUNT
from paddle_llm.models.loss import CausalLMLoss
from paddle_llm.training.evaluation.interruption import stop_if_requested
from paddle_llm.training.step.loss_normalization import find_criterion

if TYPE_CHECKING:
    from paddle_llm.training.trainers.pretrain_trainer import PretrainTrainer


def mean_loss(trainer: PretrainTrainer, model: paddle.nn.Layer, dataloader: Iterable[dict[str, Any]]) -> float:
    """Return the mean loss over all labels of a data set, without label smoothing. Collective over all ranks.

    Args:
        trainer: Trainer whose prediction step and callbacks are used.
        model: Network as the prediction step expects it: inside fleet's wrapper in a pipeline, without it elsewhere.
        dataloader: Batches of this rank, made by `CountedBatches`; all ranks have the same number.

    Raises:
        EvaluationStopped: If a rank was asked to stop.
    """
    model.eval()
    loss_times_tokens, tokens = 0.0, 0
    criterion = find_criterion(model)
    try:
        with nullcontext() if criterion is None else criterion.without_smoothing():
            for inputs in dataloader:
                stop_if_requested(trainer)
                del inputs[TOKEN_COUNT]
                count = inputs.pop(LABEL_COUNT)
                loss_times_tokens += _loss_sum(trainer, model, criterion, inputs, count)
                tokens += count
                handler = trainer.callback_handler
                trainer.control = handler.on_prediction_step(trainer.args, trainer.state, trainer.control)
    finally:
        model.train()
    if dist.get_world_size() > 1:
        sums = paddle.to_tensor([loss_times_tokens, float(tokens)], dtype="float64")
        dist.all_reduce(sums)
        loss_times_tokens, tokens = sums.tolist()
    return loss_times_tokens / tokens


def _loss_sum(
    trainer: PretrainTrainer,
    model: paddle.nn.Layer,
    criterion: CausalLMLoss | None,
    inputs: dict[str, Any],
    count: int,
) -> float:
    """Return the sum of the losses of a batch's `count` labels; zero for a batch of padding only."""
    divided: AbstractContextManager[None] = nullcontext()
    if trainer.args.pipeline_parallel_degree > 1 and criterion is not None:
        # A pipeline averages the means of its micro-batches, of which padded ones have fewer labels. All get the same
        # divisor.
        count = math.prod(inputs["labels"].shape)
        divided = criterion.divided_by(count / trainer.args.gradient_accumulation_steps)
    with divided:
        loss, _, _ = trainer.prediction_step(model, inputs, prediction_loss_only=True)
    return float(loss) * count if count else 0.0
