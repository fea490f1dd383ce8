"""Reads micro-batches one global batch ahead and counts the labels of each global batch."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import islice
from typing import Any

import paddle

from paddle_llm.data.counted_batches import LABEL_COUNT
from paddle_llm.parallel.process.parent import worker_initializer

# Key of the first micro-batch of each global batch: this rank's number of labels in the global batch.
GLOBAL_BATCH_LABELS = "global_batch_labels"


class GlobalBatchLoader(paddle.io.DataLoader):
    """DataLoader whose first micro-batch of each global batch carries `GLOBAL_BATCH_LABELS`.

    It reads one global batch ahead: for each micro-batch that it returns, it reads a micro-batch of the next global batch,
    so that workers collate while the device computes.

    Args:
        *args: Arguments of `paddle.io.DataLoader`.
        accumulation: Number of micro-batches of this rank per global batch.
        **kwargs: Arguments of `paddle.io.DataLoader`; `collate_fn` is a `CountedBatches`.
    """

    def __init__(self, *args: Any, accumulation: int, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "worker_init_fn": worker_initializer()})
        self._accumulation = accumulation

    def __iter__(self) -> Iterator[dict[str, Any]]:
        loaded = super().__iter__()
        # A generator, because Paddle's own iterator (3.3.1) fails when it is called again after its end.
        batches = (batch for batch in loaded)
        ahead = deque(islice(batches, self._accumulation))
        while ahead:
            ahead[0] = {**ahead[0], GLOBAL_BATCH_LABELS: sum(batch[LABEL_COUNT] for batch in ahead)}
            for _ in range(len(ahead)):
                yield ahead.popleft()
                ahead.extend(islice(batches, 1))
