"""Packs several samples into one row to reduce padding.

Samples are shuffled by the seed and divided into windows. In each window, a row starts with the longest remaining sample
and is filled with the samples that leave the fewest tokens unused (minimum bin slack, Gupta and Ho 1999, with a bounded
search). Rows are then shuffled by the seed. No sample is truncated or lost; the caller handles samples longer than a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

WINDOW = 1 << 16
_MAX_TRIES = 300  # per row; ten times as many improve the fill by less than 0.3%


@dataclass(frozen=True)
class Packing:
    """Samples distributed over rows.

    Attributes:
        rows: Numbers of the samples of each row.
        row_length: L, number of tokens of a row.
        tokens: Number of tokens of all samples.
        longest: Number of tokens of the longest sample.
        samples: Number of samples.
    """

    rows: list[list[int]]
    row_length: int
    tokens: int
    longest: int
    samples: int

    @property
    def padding(self) -> float:
        """Share of positions without a token in rows padded to L."""
        return 1 - self.tokens / (len(self.rows) * self.row_length) if self.rows else 0.0

    @property
    def padding_unpacked(self) -> float:
        """The same share with one sample per row."""
        return 1 - self.tokens / (self.samples * self.row_length) if self.samples else 0.0


def pack(lengths: Sequence[int] | np.ndarray, row_length: int, seed: int, window: int = WINDOW) -> Packing:
    """Distribute samples of the given lengths over rows of at most `row_length` tokens.

    Args:
        lengths: Number of tokens of each sample, from 1 to row_length [N].
        row_length: L, number of tokens of a row.
        seed: Seed of the shuffling.
        window: Number of samples packed together; larger windows leave less padding.

    Raises:
        ValueError: If a sample is empty or longer than a row.
    """
    sizes = np.asarray(lengths, dtype=np.int64)
    wrong = np.flatnonzero((sizes > row_length) | (sizes < 1))
    if len(wrong):
        raise ValueError(f"sample {wrong[0]} has {sizes[wrong[0]]} tokens, not 1 to {row_length}")
    generator = np.random.RandomState([seed % 2**32, len(sizes) % 2**32])
    order = generator.permutation(len(sizes))
    rows: list[list[int]] = []
    for first in range(0, len(order), window):
        rows += _fill_rows(order[first : first + window], sizes, row_length)
    shuffled = [rows[i] for i in generator.permutation(len(rows))]
    return Packing(shuffled, row_length, int(sizes.sum()), int(sizes.max(initial=0)), len(sizes))


class _Pool:
    """Samples by length, with a bit mask of existing lengths: one mask and one shift find the longest that fits."""

    def __init__(self, samples: np.ndarray, sizes: np.ndarray, row_length: int) -> None:
        self._by_length: list[list[int]] = [[] for _ in range(row_length + 1)]
        for sample in samples[::-1]:
            self._by_length[sizes[sample]].append(int(sample))
        self._counts = [len(found) for found in self._by_length]
        self.present = sum(1 << length for length, count in enumerate(self._counts) if count)

    def take(self, length: int) -> None:
        """Reserve a sample of this length."""
        self._counts[length] -= 1
        if not self._counts[length]:
            self.present &= ~(1 << length)

    def give_back(self, length: int) -> None:
        """Undo `take`."""
        self._counts[length] += 1
        self.present |= 1 << length

    def remove(self, length: int) -> int:
        """Remove and return a sample of this length."""
        self.take(length)
        return self._by_length[length].pop()


class _Search:
    """Depth-first search, longest first, for the lengths that best fill the rest of a row.

    Stops at a full row or after _MAX_TRIES tries.

    Attributes:
        best: Lengths of the best combination.
    """

    def __init__(self, pool: _Pool, free: int) -> None:
        self._pool, self._tries = pool, _MAX_TRIES
        self._chosen: list[int] = []
        self.best: list[int] = []
        self._least = free
        self._search(free, free)

    def _search(self, free: int, longest: int) -> bool:
        """Try all lengths up to `longest` in `free` tokens; return whether the row is full."""
        pool = self._pool
        if free < self._least:
            self.best, self._least = list(self._chosen), free
        if free and free <= longest and pool.present >> free & 1:
            self.best, self._least = [*self._chosen, free], 0
        if not self._least:
            return True
        candidates = pool.present & ((2 << min(free, longest)) - 1)
        while candidates and self._tries:
            length = candidates.bit_length() - 1
            candidates ^= 1 << length
            self._tries -= 1
            pool.take(length)
            self._chosen.append(length)
            full = self._search(free - length, length)
            self._chosen.pop()
            pool.give_back(length)
            if full:
                return True
        return False


def _fill_rows(samples: np.ndarray, sizes: np.ndarray, row_length: int) -> list[list[int]]:
    pool = _Pool(samples, sizes, row_length)
    rows = []
    while pool.present:
        longest = pool.present.bit_length() - 1
        row, free = [pool.remove(longest)], row_length - longest
        # Repeated if a row takes more samples than _MAX_TRIES can find at once.
        while lengths := _Search(pool, free).best:
            row += [pool.remove(length) for length in lengths]
            free -= sum(lengths)
        rows.append(row)
    return rows
