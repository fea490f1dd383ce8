"""The mean loss of a data set over all its labels and all ranks, exact where batches hold padding."""

from __future__ import annotations

import math

import paddle
import paddle.distributed as dist

from paddle_llm.data.counted_batches import LABEL_COUNT, TOKEN_COUNT
from paddle_llm.training.step.loss_normalization import criterion_of, mean_of_each_batch


def mean_loss(trainer, model, dataloader) -> float:
    """Mean over the labels that count. Collective: every rank brings its own part of the data.

    Args:
        trainer: a Trainer, for its prediction step and callbacks.
        model: as the prediction step wants it: fleet's wrapper in a pipeline, else the bare network.
        dataloader: of batches that `CountedBatches` has made.
    """
    model.eval()
    loss_times_tokens, tokens = 0.0, 0
    criterion = criterion_of(model)
    with mean_of_each_batch(criterion):
        for inputs in dataloader:
            del inputs[TOKEN_COUNT]
            count = inputs.pop(LABEL_COUNT)
            loss_times_tokens += _loss_sum(trainer, model, criterion, inputs, count)
            tokens += count
            trainer.control = trainer.callback_handler.on_prediction_step(trainer.args, trainer.state, trainer.control)
    model.train()
    if dist.get_world_size() > 1:
        sums = paddle.to_tensor([loss_times_tokens, float(tokens)], dtype="float64")
        dist.all_reduce(sums)
        loss_times_tokens, tokens = sums.tolist()
    return loss_times_tokens / tokens


def _loss_sum(trainer, model, criterion, inputs, count: int) -> float:
    """Sum of the losses of a batch's `count` labels; zero for a batch of padding alone."""
    if trainer.args.pipeline_parallel_degree > 1 and criterion is not None:
        # A pipeline averages the means of its micro batches, of which padded ones hold fewer labels: divide all alike.
        count = math.prod(inputs["labels"].shape)
        criterion.set_divisor(count / trainer.args.gradient_accumulation_steps)
    loss, _, _ = trainer.prediction_step(model, inputs, prediction_loss_only=True)
    return float(loss) * count if count else 0.0
