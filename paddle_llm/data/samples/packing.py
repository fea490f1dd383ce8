"""Packing: several samples in one row, so that little of it is padding.

Samples are shuffled by seed and cut into windows. In each, a row starts with the longest sample that is left and is filled with
those that leave the least room (minimum bin slack, Gupta and Ho 1999, the search bounded). Rows are then shuffled by seed. No
sample is cut or lost; those longer than a row are the caller's to judge, before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

WINDOW = 1 << 16
_BUDGET = 300  # tries per row; ten times as many fill no better by 0.3%


@dataclass(frozen=True)
class Packing:
    """rows: for each row the numbers of its samples; row_length: L; tokens: of all samples; longest: of the samples."""

    rows: list[list[int]]
    row_length: int
    tokens: int
    longest: int
    samples: int

    @property
    def padding(self) -> float:
        """Share of the positions of all rows, padded to L, that hold no token."""
        return 1 - self.tokens / (len(self.rows) * self.row_length) if self.rows else 0.0

    @property
    def padding_unpacked(self) -> float:
        """The same share with one sample to a row of L."""
        return 1 - self.tokens / (self.samples * self.row_length) if self.samples else 0.0


def pack(lengths: Sequence[int] | np.ndarray, row_length: int, seed: int, window: int = WINDOW) -> Packing:
    """Lay samples of the given lengths out in rows of at most row_length tokens.

    Args:
        lengths: [N] tokens of each sample, each from 1 to row_length.
        window: samples packed together; larger fills better.

    Raises:
        ValueError: a sample that is longer than a row, or empty.
    """
    sizes = np.asarray(lengths, dtype=np.int64)
    wrong = np.flatnonzero((sizes > row_length) | (sizes < 1))
    if len(wrong):
        raise ValueError(f"sample {wrong[0]} has {sizes[wrong[0]]} tokens, a row {row_length}")
    draw = np.random.RandomState([seed % 2**32, len(sizes) % 2**32])
    order = draw.permutation(len(sizes))
    rows: list[list[int]] = []
    for first in range(0, len(order), window):
        rows += _fill_rows(order[first : first + window], sizes, row_length)
    shuffled = [rows[i] for i in draw.permutation(len(rows))]
    return Packing(shuffled, row_length, int(sizes.sum()), int(sizes.max(initial=0)), len(sizes))


class _Pool:
    """Samples by length, and a bit for each length that is there: the longest that fits is one mask and one shift away."""

    def __init__(self, samples: np.ndarray, sizes: np.ndarray, row_length: int):
        self._by_length: list[list[int]] = [[] for _ in range(row_length + 1)]
        for sample in samples[::-1]:
            self._by_length[sizes[sample]].append(int(sample))
        self._counts = [len(found) for found in self._by_length]
        self.present = sum(1 << length for length, count in enumerate(self._counts) if count)

    def take(self, length: int) -> None:
        self._counts[length] -= 1
        if not self._counts[length]:
            self.present &= ~(1 << length)

    def give_back(self, length: int) -> None:
        self._counts[length] += 1
        self.present |= 1 << length

    def remove(self, length: int) -> int:
        """A sample of this length, for good."""
        self.take(length)
        return self._by_length[length].pop()


class _Search:
    """The lengths that fill what is left of a row best, found depth first, long ones first; stops at a full row or when the budget
    is spent."""

    def __init__(self, pool: _Pool, room: int):
        self._pool, self._budget = pool, _BUDGET
        self._chosen: list[int] = []
        self.best: list[int] = []
        self._least = room
        self._go(room, room)

    def _go(self, room: int, longest: int) -> bool:
        pool = self._pool
        if room < self._least:
            self.best, self._least = list(self._chosen), room
        if room and room <= longest and pool.present >> room & 1:
            self.best, self._least = [*self._chosen, room], 0
        if not self._least:
            return True
        candidates = pool.present & ((2 << min(room, longest)) - 1)
        while candidates and self._budget:
            length = candidates.bit_length() - 1
            candidates ^= 1 << length
            self._budget -= 1
            pool.take(length)
            self._chosen.append(length)
            full = self._go(room - length, length)
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
        row, room = [pool.remove(longest)], row_length - longest
        # More than once where a row takes more samples than the budget allows tries.
        while lengths := _Search(pool, room).best:
            row += [pool.remove(length) for length in lengths]
            room -= sum(lengths)
        rows.append(row)
    return rows
