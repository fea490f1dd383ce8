"""The mean loss of a data set over all its labels and all ranks, exact where batches hold padding."""

from __future__ import annotations

import math

import numpy as np
import paddle
import paddle.distributed as dist

from paddle_llm.data.sampler import IGNORED_LABEL
from paddle_llm.models.loss import CausalLMLoss


def mean_loss(trainer, model, dataloader) -> float:
    """Mean over the labels that count. Collective: every rank brings its own part of the data.

    Args:
        trainer: a Trainer, for its prediction step and callbacks.
        model: as the prediction step wants it: fleet's wrapper in a pipeline, else the bare network.
    """
    model.eval()
    loss_times_tokens, tokens = 0.0, 0
    for inputs in dataloader:
        loss_times_tokens += _loss_sum(trainer, model, inputs)
        tokens += count_labels(inputs)
        trainer.control = trainer.callback_handler.on_prediction_step(trainer.args, trainer.state, trainer.control)
    model.train()
    if dist.get_world_size() > 1:
        sums = paddle.to_tensor([loss_times_tokens, float(tokens)], dtype="float64")
        dist.all_reduce(sums)
        loss_times_tokens, tokens = sums.tolist()
    return loss_times_tokens / tokens


def _loss_sum(trainer, model, inputs) -> float:
    """Sum of the losses of a batch's labels that count; zero for a batch of padding alone."""
    count = count_labels(inputs)
    criterion = model._layers._loss_fn[0] if trainer.args.pipeline_parallel_degree > 1 else None
    if isinstance(criterion, CausalLMLoss):
        # A pipeline averages the means of its micro batches, of which padded ones hold fewer labels: divide all alike.
        count = math.prod(inputs["labels"].shape)
        criterion.divisor = count / trainer.args.gradient_accumulation_steps
    try:
        loss, _, _ = trainer.prediction_step(model, inputs, prediction_loss_only=True)
    finally:
        if isinstance(criterion, CausalLMLoss):
            criterion.divisor = None
    return float(loss) * count if count else 0.0


def count_labels(inputs) -> int:
    """Labels that bear loss in a batch."""
    return int(np.count_nonzero(np.asarray(inputs["labels"]) != IGNORED_LABEL))
