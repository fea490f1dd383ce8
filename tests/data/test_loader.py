"""The order in which micro-batches are read and returned, and which of them carry the labels of their global batch."""

from __future__ import annotations

from unittest import mock

import paddle
import pytest

from paddle_llm.data.counted_batches import LABEL_COUNT
from paddle_llm.data.loader import GLOBAL_BATCH_LABELS, GlobalBatchLoader


def _events(accumulation: int, count: int) -> list[str]:
    """Return the order of "read" and "returned" for `count` micro-batches; micro-batch i has 10^i labels."""
    events: list[str] = []

    def read(self):
        for number in range(count):
            events.append(f"read {number}")
            yield {LABEL_COUNT: 10**number, "number": number}

    loader = GlobalBatchLoader([0] * count, accumulation=accumulation)
    with mock.patch.object(paddle.io.DataLoader, "__iter__", read):
        for batch in loader:
            labels = f" with {batch[GLOBAL_BATCH_LABELS]} labels" if GLOBAL_BATCH_LABELS in batch else ""
            events.append(f"returned {batch['number']}{labels}")
    return events


def test_the_next_global_batch_is_read_while_the_current_one_computes():
    assert _events(accumulation=2, count=4) == [
        *("read 0", "read 1"),
        *("returned 0 with 11 labels", "read 2", "returned 1", "read 3"),
        *("returned 2 with 1100 labels", "returned 3"),
    ]


@pytest.mark.parametrize("accumulation", [1, 3, 8])
def test_all_micro_batches_are_returned_in_order(accumulation):
    returned = [int(event.split()[1]) for event in _events(accumulation, 9) if event.startswith("returned")]
    assert returned == list(range(9))


@pytest.mark.parametrize("workers", [0, 2])
def test_counts_stay_on_the_host_with_paddles_own_loader(workers):
    from paddle_llm.data.collate import collate_numpy
    from paddle_llm.data.counted_batches import CountedBatches
    from tests.helpers.pretrain_jobs import SEQUENCE, Toy

    loader = GlobalBatchLoader(
        Toy(8),
        batch_size=1,
        collate_fn=CountedBatches(collate_numpy),
        num_workers=workers,
        accumulation=4,
    )
    batches = list(loader)
    assert [batch.get(GLOBAL_BATCH_LABELS) for batch in batches] == [4 * SEQUENCE, None, None, None] * 2
    assert all(type(batch[LABEL_COUNT]) is int and isinstance(batch["labels"], paddle.Tensor) for batch in batches)
