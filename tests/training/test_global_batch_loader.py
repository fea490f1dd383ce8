"""Which micro-batches are read, announced and handed out in which order."""

from __future__ import annotations

from unittest import mock

import paddle
import pytest

from paddle_llm.data.counted_batches import LABEL_COUNT
from paddle_llm.training.step.loss_normalization import GlobalBatchLoader


def _events(accumulation: int, count: int) -> list[str]:
    """Order of "read", "announced" and "handed out" of `count` micro-batches; micro-batch i has 10^i labels."""
    events: list[str] = []

    def read(self):
        for number in range(count):
            events.append(f"read {number}")
            yield {LABEL_COUNT: 10**number, "number": number}

    def announce(labels: int) -> None:
        events.append(f"announced {labels}")

    loader = GlobalBatchLoader([0] * count, accumulation=accumulation, announce=announce)
    with mock.patch.object(paddle.io.DataLoader, "__iter__", read):
        for batch in loader:
            events.append(f"handed out {batch['number']}")
    return events


def test_the_next_global_batch_is_read_while_the_current_one_computes():
    assert _events(accumulation=2, count=4) == [
        *("read 0", "read 1", "announced 11"),
        *("handed out 0", "read 2", "handed out 1", "read 3", "announced 1100"),
        *("handed out 2", "handed out 3"),
    ]


@pytest.mark.parametrize("accumulation", [1, 3, 8])
def test_all_micro_batches_are_handed_out_in_order(accumulation):
    handed_out = [event for event in _events(accumulation, 9) if event.startswith("handed out")]
    assert handed_out == [f"handed out {number}" for number in range(9)]


@pytest.mark.parametrize("workers", [0, 2])
def test_counts_stay_on_the_host_with_paddles_own_loader(workers):
    from paddle_llm.data.collate import collate_numpy
    from paddle_llm.data.counted_batches import CountedBatches, labels_as_tokens
    from tests.helpers.pretrain_jobs import SEQUENCE, Toy

    announced: list[int] = []
    loader = GlobalBatchLoader(
        Toy(8),
        batch_size=1,
        collate_fn=CountedBatches(collate_numpy, labels_as_tokens),
        num_workers=workers,
        accumulation=4,
        announce=announced.append,
    )
    batches = list(loader)
    assert announced == [4 * SEQUENCE] * 2 and len(batches) == 8
    assert all(type(batch[LABEL_COUNT]) is int and isinstance(batch["labels"], paddle.Tensor) for batch in batches)
