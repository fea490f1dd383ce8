"""Assigns the samples of the global order to ranks and micro-batches."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from paddle.io import BatchSampler
from paddlenlp.utils.batch_sampler import DistributedBatchSampler

from paddle_llm.core.artifacts import IGNORE_INDEX
from paddle_llm.data.collate import Sample, SampleDataset


class GlobalBatchSampler(DistributedBatchSampler):
    """Cuts the global order into global batches of G = b * A * D samples and gives each rank its part.

    In the global batch that starts at sample s, micro-step j of rank r takes the samples s + (j*D + r)*b + [0, b). The
    union over ranks and micro-steps is [s, s + G) for every layout. Only complete global batches are used.

    PaddleNLP's Trainer recognizes the base class: on a resume it calls `set_epoch(consumed_samples=...)` instead of
    reading and dropping batches. The order contains all epochs, so one pass over the sampler is the whole training and
    the number of the epoch has no effect.

    Args:
        total_samples: Length of the global order; with `skipped`, the number of steps of the training times G.
        micro_batch_size: b, samples per rank and micro-step.
        gradient_accumulation_steps: A, micro-steps per step.
        data_rank: r, rank among the data and sharding parallel ranks.
        data_world_size: D, number of these ranks.
        consumed_samples: Position in the order at which the first global batch starts; earlier samples are not read.

    Attributes:
        skipped: Difference between the position in the global order and steps times G, of a training that has changed its
            global batch; may be negative; 0 by default.
    """

    def __init__(
        self,
        total_samples: int,
        micro_batch_size: int,
        gradient_accumulation_steps: int,
        data_rank: int,
        data_world_size: int,
        consumed_samples: int = 0,
    ) -> None:
        super().__init__(
            range(total_samples),
            batch_size=micro_batch_size,
            num_replicas=data_world_size,
            rank=data_rank,
            shuffle=False,
            drop_last=True,
            consumed_samples=consumed_samples,
        )
        self.total_samples, self.skipped = total_samples, 0
        self.gradient_accumulation_steps = gradient_accumulation_steps
        self.global_batch_size = micro_batch_size * gradient_accumulation_steps * data_world_size

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the sample numbers of each micro-batch of this rank."""
        start = self.consumed_samples
        while start + self.global_batch_size <= self.total_samples:
            for micro_step in range(self.gradient_accumulation_steps):
                first = self.skipped + start + (micro_step * self.nranks + self.local_rank) * self.batch_size
                yield list(range(first, first + self.batch_size))
            start += self.global_batch_size

    def __len__(self) -> int:
        """Return the number of micro-steps of the whole order for any starting position, as the Trainer expects."""
        return self.total_samples // self.global_batch_size * self.gradient_accumulation_steps


class EvalBatchSampler(BatchSampler):
    """Yields every sample exactly once over the data ranks, with the same number of full batches on every rank.

    Pipelines and collectives need equal numbers. Missing samples at the end get indices from `total_samples` on, which
    `PaddedView` turns into repeated samples with all labels ignored. A mean weighted by label counts is therefore exact.

    Args:
        total_samples: Number of samples to evaluate.
        micro_batch_size: Samples per rank and batch.
        data_rank: Rank among the data and sharding parallel ranks.
        data_world_size: Number of these ranks.
        batches_multiple: Divisor of every rank's number of batches (gradient accumulation of a pipeline).
    """

    def __init__(
        self, total_samples: int, micro_batch_size: int, data_rank: int, data_world_size: int, batches_multiple: int = 1
    ) -> None:
        super().__init__(dataset=range(total_samples), shuffle=False, batch_size=micro_batch_size, drop_last=False)
        self.data_rank, self.data_world_size = data_rank, data_world_size
        batches = -(-total_samples // (micro_batch_size * data_world_size))
        self.n_batches = -(-batches // batches_multiple) * batches_multiple

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the sample numbers of each batch of this rank."""
        for batch in range(self.n_batches):
            first = (batch * self.data_world_size + self.data_rank) * self.batch_size
            yield list(range(first, first + self.batch_size))

    def __len__(self) -> int:
        return self.n_batches


class PaddedView:
    """A dataset that returns a repeated sample with all `labels` ignored for indices past its end."""

    def __init__(self, dataset: SampleDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:
        if index < len(self.dataset):
            return self.dataset[index]
        sample = dict(self.dataset[index % len(self.dataset)])
        sample["labels"] = np.full_like(sample["labels"], IGNORE_INDEX)
        return sample
