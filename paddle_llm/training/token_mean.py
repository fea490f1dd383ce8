"""The loss of a step is the mean over the labels of its global batch, however that is divided.

Averaging the means of micro batches weighs a label by how few others its micro batch has: with samples of unequal length
the result then depends on batch size, accumulation and the number of ranks. Here the labels of a global batch are counted
over all ranks before its first micro batch computes, and every micro batch divides its sum by the same number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import numpy as np
import paddle
import paddle.distributed as dist

from paddle_llm.data.sampler import IGNORED_LABEL
from paddle_llm.models.loss import CausalLMLoss
from paddle_llm.parallel.process.parent import worker_initializer


class GlobalBatchLoader(paddle.io.DataLoader):
    """A DataLoader that reads the micro batches of a global batch together and counts their labels.

    Args:
        accumulation: micro batches of this rank in a global batch.
        announce: is called with this rank's number of labels before the first of them is handed out.
    """

    def __init__(self, *args, accumulation: int, announce: Callable[[int], None], **kwargs):
        super().__init__(*args, worker_init_fn=worker_initializer(), **kwargs)
        self._accumulation, self._announce = accumulation, announce

    def __iter__(self) -> Iterator[Any]:
        batches = iter(super().__iter__())
        while micro_batches := list(islice(batches, self._accumulation)):
            self._announce(sum(map(count_labels, micro_batches)))
            yield from micro_batches


class TokenMean:
    """Sets the divisor of a network's loss for each global batch.

    Attributes:
        labels: of the current global batch, on average over the data ranks; None before the first.

    Args:
        model: the bare network or PipelineLayer; one with another loss than ours is left alone.
        micro_batches: of all data ranks in a global batch.
        data_ranks, model_ranks: ranks with different samples; ranks with the same.
    """

    def __init__(self, model: Any, *, micro_batches: int, data_ranks: int, model_ranks: int):
        self._criterion = criterion_of(model)
        self._micro_batches, self._data_ranks, self._model_ranks = micro_batches, data_ranks, model_ranks
        self.labels: float | None = None

    def announce(self, labels: int) -> None:
        """This rank's number of labels in the global batch that comes now. Collective over all ranks."""
        if self._criterion is None:
            return
        count = float(labels)
        if dist.get_world_size() > 1:
            total = paddle.to_tensor([count], dtype="float64")
            dist.all_reduce(total)
            count = float(total) / self._model_ranks
        self.labels = count / self._data_ranks
        self._criterion.divisor = max(count, 1.0) / self._micro_batches


def criterion_of(model: Any) -> CausalLMLoss | None:
    """The loss of a network, also of a PipelineLayer and of what fleet wraps around them."""
    layer = getattr(model, "_layers", model)
    candidates = [*(getattr(layer, "_loss_fn", None) or []), *layer.sublayers(include_self=True)]
    return next((found for found in candidates if isinstance(found, CausalLMLoss)), None)


@contextmanager
def mean_of_each_batch(criterion: CausalLMLoss | None) -> Iterator[None]:
    """For evaluation: the loss is again the mean over each batch that it gets, and not smoothed."""
    if criterion is None:
        yield
        return
    before = criterion.divisor, criterion.label_smoothing
    criterion.divisor, criterion.label_smoothing = None, 0.0
    try:
        yield
    finally:
        criterion.divisor, criterion.label_smoothing = before


def count_labels(inputs: Any) -> int:
    """Labels that bear loss in a batch."""
    return int(np.count_nonzero(np.asarray(inputs["labels"]) != IGNORED_LABEL))
