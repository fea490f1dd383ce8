"""Assign weights to the ranks of a sharding group."""

from __future__ import annotations

import heapq
from collections.abc import Sequence


def largest_first(sizes: Sequence[int], degree: int, loads: Sequence[int] | None = None) -> list[int]:
    """Assign each weight to the rank with the fewest elements, the largest first (Graham 1969: at most 4/3 of the optimum).

    Fleet does the same (paddle 3.3.1, DygraphShardingOptimizer); the first of several ranks with equal loads is used.

    Args:
        sizes: Number of elements of each weight.
        degree: Number of ranks.
        loads: Elements that each rank has already; None for none.

    Returns:
        Rank of each weight.
    """
    heap = [(load, rank) for rank, load in enumerate(loads or [0] * degree)]
    heapq.heapify(heap)
    owners = [0] * len(sizes)
    for index in sorted(range(len(sizes)), key=lambda i: sizes[i], reverse=True):
        load, rank = heap[0]
        owners[index] = rank
        heapq.heapreplace(heap, (load + sizes[index], rank))
    return owners
