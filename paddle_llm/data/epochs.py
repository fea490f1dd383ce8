"""Several epochs of a map-style dataset as one global order; each epoch is shuffled differently."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from paddle_llm.data.collate import Sample, SampleDataset
from paddle_llm.data.identity import DataIdentity


class ShuffledEpochs:
    """Samples of the whole training: item i is sample `order_e[i % n]` of epoch e = i // n, with n samples per epoch.

    The order of an epoch depends only on the seed and the number of the epoch, so a resume needs only the position.

    Args:
        dataset: Dataset with n samples.
        length: Number of samples of the whole training.
        seed: Seed of the shuffling.
    """

    def __init__(self, dataset: SampleDataset, length: int, seed: int) -> None:
        self._dataset, self._length, self._seed = dataset, length, seed
        self.samples_per_epoch = len(dataset)
        self._epoch, self._order = -1, np.empty(0, np.int64)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Sample:
        return self._dataset[self._locate(index)[1]]

    def extend(self, length: int) -> None:
        """Continue the order to another length; the samples so far do not change."""
        self._length = max(self._length, length)

    def sample_ids(self, index: int) -> str:
        """Return a readable origin of a sample: its epoch and number."""
        epoch, sample = self._locate(index)
        return f"epoch {epoch}, sample {sample}"

    def identity(self) -> DataIdentity | None:
        """Return the identity of the dataset and of its order; None if the dataset does not provide one."""
        own = getattr(self._dataset, "identity", None)
        found = None if own is None else own()
        return None if found is None else replace(found, parts={**found.parts, "seed of the order": self._seed})

    def digest(self) -> str | None:
        """Return the digest of the dataset, as checkpoints without an identity of all data have it; None as in `identity`."""
        own = getattr(self._dataset, "digest", None)
        return None if own is None else own()

    def _locate(self, index: int) -> tuple[int, int]:
        if not 0 <= index < self._length:
            raise IndexError(f"sample {index} of {self._length}")
        epoch, position = divmod(int(index), self.samples_per_epoch)
        if epoch != self._epoch:
            order = np.random.RandomState([self._seed % 2**32, epoch]).permutation(self.samples_per_epoch)
            self._epoch, self._order = epoch, order
        return epoch, int(self._order[position])
