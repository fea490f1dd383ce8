"""Which rank reads which samples of the one global order, micro batch by micro batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from paddle.io import BatchSampler
from paddlenlp.utils.batch_sampler import DistributedBatchSampler

from paddle_llm.core.artifacts import IGNORE_INDEX


class GlobalBatchSampler(DistributedBatchSampler):
    """Cuts the global order into global batches of G = b * A * D samples and gives each rank its part.

    Micro step j of rank r takes, of a global batch that starts at sample s, the samples s + (j*D + r)*b + [0, b): the union
    over ranks and micro steps is [s, s + G) whatever the layout. Only whole global batches are given. The first starts at
    `consumed_samples`; no skipped sample is read.

    The base class is what PaddleNLP's Trainer tests for before it sets the position on a resume
    (`set_epoch(consumed_samples=...)`) instead of reading and dropping batches. Epochs are inside the order, so one walk
    through the sampler is the whole training and the number of the epoch changes nothing.

    Args:
        total_samples: length of the global order.
        micro_batch_size: b, samples per rank and micro step.
        gradient_accumulation_steps: A, micro steps per step.
        data_rank, data_world_size: r of D, over data and sharding parallel ranks.
        consumed_samples: position in the order where the first global batch starts.
    """

    def __init__(
        self,
        total_samples: int,
        micro_batch_size: int,
        gradient_accumulation_steps: int,
        data_rank: int,
        data_world_size: int,
        consumed_samples: int = 0,
    ):
        super().__init__(
            range(total_samples),
            batch_size=micro_batch_size,
            num_replicas=data_world_size,
            rank=data_rank,
            shuffle=False,
            drop_last=True,
            consumed_samples=consumed_samples,
        )
        self.total_samples = total_samples
        self.gradient_accumulation_steps = gradient_accumulation_steps
        self.global_batch_size = micro_batch_size * gradient_accumulation_steps * data_world_size

    def __iter__(self) -> Iterator[list[int]]:
        start = self.consumed_samples
        while start + self.global_batch_size <= self.total_samples:
            for micro_step in range(self.gradient_accumulation_steps):
                first = start + (micro_step * self.nranks + self.local_rank) * self.batch_size
                yield list(range(first, first + self.batch_size))
            start += self.global_batch_size

    def __len__(self) -> int:
        """Micro steps of the whole order, wherever this walk starts: the Trainer counts its steps by it."""
        return self.total_samples // self.global_batch_size * self.gradient_accumulation_steps


class EvalBatchSampler(BatchSampler):
    """Every sample exactly once over the data ranks, in whole batches, as many on every rank (a pipeline and collectives
    need both). What is missing at the end is filled with indices from `total_samples` on; `PaddedView` turns those into
    repeated samples whose labels are all ignored, so a mean weighted by labels that count is exact.

    Args:
        total_samples: samples to evaluate.
        micro_batch_size: samples per rank and batch.
        batches_multiple: every rank's number of batches is a multiple of this (accumulation of a pipeline).
    """

    def __init__(
        self, total_samples: int, micro_batch_size: int, data_rank: int, data_world_size: int, batches_multiple: int = 1
    ):
        super().__init__(dataset=range(total_samples), shuffle=False, batch_size=micro_batch_size, drop_last=False)
        self.data_rank, self.data_world_size = data_rank, data_world_size
        batches = -(-total_samples // (micro_batch_size * data_world_size))
        self.n_batches = -(-batches // batches_multiple) * batches_multiple

    def __iter__(self) -> Iterator[list[int]]:
        for batch in range(self.n_batches):
            first = (batch * self.data_world_size + self.data_rank) * self.batch_size
            yield list(range(first, first + self.batch_size))

    def __len__(self) -> int:
        return self.n_batches


class PaddedView:
    """A dataset that answers indices past its end with a repeated sample whose `labels` are all ignored (-100)."""

    def __init__(self, dataset: Any):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        if index < len(self.dataset):
            return self.dataset[index]
        sample = dict(self.dataset[index % len(self.dataset)])
        sample["labels"] = np.full_like(sample["labels"], IGNORE_INDEX)
        return sample
