"""Samplers: the same global batches on every layout, resume by position, evaluation without repeated samples."""

from __future__ import annotations

import numpy as np
import pytest
from paddle.io import DataLoader
from paddlenlp.utils.batch_sampler import DistributedBatchSampler

from paddle_llm.data.collate import collate_numpy
from paddle_llm.data.sampler import EvalBatchSampler, GlobalBatchSampler, PaddedView

LAYOUTS = [(12, 1, 1), (4, 3, 1), (2, 3, 2), (1, 3, 4), (3, 1, 4), (1, 12, 1), (6, 1, 2)]  # all make 12 samples


class Squares:
    """Sample i contains its own number; the labels of one sample in three are partly ignored."""

    def __init__(self, length: int):
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        labels = np.full(4, i)
        labels[: i % 3] = -100
        return {"input_ids": np.full(4, i), "labels": labels}


def global_batches(total: int, b: int, accumulation: int, world: int, consumed: int = 0) -> list[list[int]]:
    """Return the union over ranks and micro-steps, one list per optimizer step."""
    per_rank = [list(GlobalBatchSampler(total, b, accumulation, r, world, consumed)) for r in range(world)]
    assert len({len(batches) for batches in per_rank}) == 1
    assert all(len(micro) == b for batches in per_rank for micro in batches)
    steps = len(per_rank[0]) // accumulation
    return [
        [i for micro in range(step * accumulation, (step + 1) * accumulation) for rank in per_rank for i in rank[micro]]
        for step in range(steps)
    ]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_follows_the_same_global_order(layout: tuple[int, int, int]) -> None:
    assert global_batches(100, *layout) == [list(range(s, s + 12)) for s in range(0, 96, 12)]


def test_the_samples_of_a_rank_are_as_documented() -> None:
    b, accumulation, world = 2, 3, 2
    for rank in range(world):
        for n, micro in enumerate(GlobalBatchSampler(36, b, accumulation, rank, world)):
            g, j = divmod(n, accumulation)
            first = g * 12 + (j * world + rank) * b
            assert micro == [first, first + 1]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_resume_continues_at_its_position_on_any_layout(layout: tuple[int, int, int]) -> None:
    assert global_batches(100, *layout, consumed=36) == global_batches(100, 12, 1, 1)[3:]
    assert global_batches(100, *layout, consumed=31)[0] == list(range(31, 43)), "after a change of the global batch"


def test_a_resume_as_the_trainer_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = GlobalBatchSampler(100, 2, 3, 1, 2)
    assert isinstance(sampler, DistributedBatchSampler)
    assert len(sampler) == 24 and len(list(sampler)) == 24
    sampler.set_epoch(consumed_samples=24)
    assert next(iter(sampler)) == [26, 27]
    assert len(sampler) == 24, "steps of the whole order, as the trainer counts them"
    assert len(list(sampler)) == 18


def test_an_incomplete_last_global_batch_is_dropped() -> None:
    assert list(GlobalBatchSampler(11, 12, 1, 0, 1)) == []
    assert len(GlobalBatchSampler(23, 12, 1, 0, 1)) == 1


@pytest.mark.parametrize(
    ("total", "b", "world", "multiple"), [(10, 2, 2, 1), (7, 3, 2, 1), (1, 2, 4, 3), (12, 2, 3, 2)]
)
def test_evaluation_sees_every_sample_once_and_its_mean_is_exact(total: int, b: int, world: int, multiple: int) -> None:
    dataset = Squares(total)
    view = PaddedView(dataset)
    weighted, weight, seen, lengths = 0.0, 0, [], set()
    for rank in range(world):
        sampler = EvalBatchSampler(total, b, rank, world, multiple)
        batches = list(sampler)
        lengths.add(len(batches))
        assert len(sampler) == len(batches) and len(batches) % multiple == 0
        for batch in batches:
            assert len(batch) == b
            labels = collate_numpy([view[i] for i in batch])["labels"]
            counted = labels[labels != -100]
            weighted, weight = weighted + float(counted.sum()), weight + counted.size
            seen += [i for i in batch if i < total]
    assert len(lengths) == 1, "as many batches on every rank"
    assert sorted(seen) == list(range(total))
    alone = np.concatenate([dataset[i]["labels"] for i in range(total)])
    assert weighted / weight == pytest.approx(alone[alone != -100].mean(), abs=0)
    assert len(view) == total


@pytest.mark.parametrize("workers", [0, 2])
def test_a_dataloader_with_workers_gives_the_same_batches(workers: int) -> None:
    sampler = GlobalBatchSampler(20, 2, 2, 0, 1, consumed_samples=4)
    loader = DataLoader(Squares(20), batch_sampler=sampler, collate_fn=collate_numpy, num_workers=workers)
    batches = [batch["input_ids"].numpy()[:, 0].tolist() for batch in loader]
    assert batches == [[4, 5], [6, 7], [8, 9], [10, 11], [12, 13], [14, 15], [16, 17], [18, 19]]
