"""The loss of a step is the mean over all labels of its global batch, whatever the layout.

The mean of the means of micro-batches weights a label by the number of other labels in its micro-batch. With samples of
unequal length, that mean depends on the batch size, the accumulation and the number of ranks. Here the labels of a
global batch are counted over all ranks before its first micro-batch is computed, and the sum of every micro-batch is
divided by the same number:

    `GlobalBatchLoader` counts the labels of this rank -> `LossNormalizer` sums them over ranks -> the loss divides
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import paddle
import paddle.distributed as dist

from paddle_llm.models.loss import CausalLMLoss

if TYPE_CHECKING:
    from paddle_llm.models.protocols import LanguageModel


class LossNormalizer:
    """Computes the divisor of the loss for each global batch.

    Attributes:
        labels: Labels of the current global batch, averaged over the data ranks: a number in a job of one rank, else a
            scalar tensor on the device; None before the first global batch.
        divisor: Number or float32 scalar by which the loss of each micro-batch is divided; None before the first global
            batch, and for a network with another loss than `CausalLMLoss`.

    Args:
        model: Network without fleet's wrapper, or PipelineLayer.
        micro_batches: Number of micro-batches per global batch, over all data ranks.
        data_ranks: Number of ranks that read different samples.
        model_ranks: Number of ranks that read the same samples.
    """

    def __init__(self, model: LanguageModel, *, micro_batches: int, data_ranks: int, model_ranks: int):
        self._criterion = find_criterion(model)
        self._micro_batches, self._data_ranks, self._model_ranks = micro_batches, data_ranks, model_ranks
        self.labels: float | paddle.Tensor | None = None
        self.divisor: float | paddle.Tensor | None = None

    def start_global_batch(self, labels: int) -> None:
        """Sum the labels of the next global batch over all ranks. Collective over all ranks.

        The sum remains on the device, where the loss needs it. Copying it would make the host wait.

        Args:
            labels: This rank's number of labels.
        """
        if self._criterion is None:
            return
        if dist.get_world_size() == 1:
            self.labels = float(labels)
            self.divisor = max(self.labels, 1.0) / self._micro_batches
            return
        total = paddle.to_tensor([float(labels)], dtype="float64")
        dist.all_reduce(total)
        count = total.squeeze() / self._model_ranks
        self.labels = count / self._data_ranks
        self.divisor = (count.clip(min=1.0) / self._micro_batches).astype("float32")

    def applied(self) -> AbstractContextManager[None]:
        """Return a context in which the network's loss divides by `divisor`."""
        return nullcontext() if self._criterion is None else self._criterion.divided_by(self.divisor)


def find_criterion(model: LanguageModel) -> CausalLMLoss | None:
    """Return the loss of a network or PipelineLayer, also inside fleet's wrapper; None if it is another loss."""
    layer = getattr(model, "_layers", model)
    candidates = [*(getattr(layer, "_loss_fn", None) or []), *layer.sublayers(include_self=True)]
    return next((found for found in candidates if isinstance(found, CausalLMLoss)), None)
