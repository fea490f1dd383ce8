"""Several epochs of any map-style data set as one global order, each epoch shuffled anew."""

from __future__ import annotations

from typing import Any

import numpy as np


class ShuffledEpochs:
    """Item i of the whole training: sample `order_e[i % n]` of epoch e = i // n, n samples to an epoch.

    The order of an epoch depends on the seed and the number of the epoch only, so that a position is the whole state.

    Args:
        dataset: n samples, each a dict of arrays.
        length: samples of the whole training.
    """

    def __init__(self, dataset: Any, length: int, seed: int):
        self._dataset, self._length, self._seed = dataset, length, seed
        self.samples_per_epoch = len(dataset)
        self._epoch, self._order = -1, np.empty(0, np.int64)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Any:
        return self._dataset[self._locate(index)[1]]

    def sample_ids(self, index: int) -> str:
        epoch, sample = self._locate(index)
        return f"epoch {epoch}, sample {sample}"

    def digest(self) -> str | None:
        """Return a digest of the data set's content; None where it cannot tell."""
        own = getattr(self._dataset, "digest", None)
        return None if own is None else own()

    def _locate(self, index: int) -> tuple[int, int]:
        if not 0 <= index < self._length:
            raise IndexError(f"sample {index} of {self._length}")
        epoch, place = divmod(int(index), self.samples_per_epoch)
        if epoch != self._epoch:
            order = np.random.RandomState([self._seed % 2**32, epoch]).permutation(self.samples_per_epoch)
            self._epoch, self._order = epoch, order
        return epoch, int(self._order[place])
