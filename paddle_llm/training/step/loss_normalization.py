"""The loss of a step is the mean over the labels of its global batch, however that is divided.

Averaging the means of micro batches weighs a label by how few others its micro batch has: with samples of unequal length
the result then depends on batch size, accumulation and the number of ranks. Here the labels of a global batch are counted
over all ranks before its first micro batch computes, and every micro batch divides its sum by the same number.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import paddle
import paddle.distributed as dist

from paddle_llm.data.counted_batches import LABEL_COUNT
from paddle_llm.models.loss import CausalLMLoss
from paddle_llm.parallel.process.parent import worker_initializer


class GlobalBatchLoader(paddle.io.DataLoader):
    """A DataLoader that announces the labels of a global batch before it hands out its first micro-batch.

    It is one global batch ahead: with each micro-batch that it hands out it takes one of the next global batch, so that
    workers collate while the device computes.

    Args:
        collate_fn: a `CountedBatches`.
        accumulation: micro batches of this rank in a global batch.
        announce: is called with this rank's number of labels before the first of them is handed out.
    """

    def __init__(self, *args, accumulation: int, announce: Callable[[int], None], **kwargs):
        super().__init__(*args, worker_init_fn=worker_initializer(), **kwargs)
        self._accumulation, self._announce = accumulation, announce

    def __iter__(self) -> Iterator[Any]:
        loaded = super().__iter__()
        batches = (
            batch for batch in loaded
        )  # Paddle's own iterator (3.3.1) fails when it is asked again after its end
        ahead = deque(islice(batches, self._accumulation))
        while ahead:
            self._announce(sum(batch[LABEL_COUNT] for batch in ahead))
            for _ in range(len(ahead)):
                yield ahead.popleft()
                ahead.extend(islice(batches, 1))


class TokenMean:
    """Sets the divisor of a network's loss for each global batch.

    Attributes:
        labels: of the current global batch, on average over the data ranks; a scalar tensor on the device where ranks are
            several; None before the first.

    Args:
        model: the bare network or PipelineLayer; one with another loss than ours is left alone.
        micro_batches: of all data ranks in a global batch.
        data_ranks, model_ranks: ranks with different samples; ranks with the same.
    """

    def __init__(self, model: Any, *, micro_batches: int, data_ranks: int, model_ranks: int):
        self._criterion = criterion_of(model)
        self._micro_batches, self._data_ranks, self._model_ranks = micro_batches, data_ranks, model_ranks
        self.labels: float | paddle.Tensor | None = None

    def announce(self, labels: int) -> None:
        """This rank's number of labels in the global batch that comes now. Collective over all ranks.

        The sum over ranks stays on the device: the loss needs it there.
        """
        if self._criterion is None:
            return
        if dist.get_world_size() == 1:
            self.labels = float(labels)
            self._criterion.set_divisor(max(self.labels, 1.0) / self._micro_batches)
            return
        total = paddle.to_tensor([float(labels)], dtype="float64")
        dist.all_reduce(total)
        count = total.squeeze() / self._model_ranks
        self.labels = count / self._data_ranks
        self._criterion.set_divisor((count.clip(min=1.0) / self._micro_batches).astype("float32"))


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
    divisor, smoothing = criterion.divisor, criterion.label_smoothing
    criterion.set_divisor(None)
    criterion.label_smoothing = 0.0
    try:
        yield
    finally:
        criterion.set_divisor(divisor)
        criterion.label_smoothing = smoothing
