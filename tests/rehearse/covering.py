"""A pairwise covering array: every allowed pair of values of layouts and options occurs in some row.

Most faults of a combination are caused by two of its values (Kuhn, Wallace & Gallo 2004, "Software fault interactions and
implications for software testing"); all combinations would be millions of rows. The algorithm is greedy, after Cohen et al. 1997
("The AETG system"). No library is used: allpairspy 2.5.1, with the rules as its filter, stops when it has found half of the rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from random import Random
from typing import Any

from tests.rehearse.options import RowChecker
from tests.rehearse.spaces import Row, Space, space_of

Value = tuple[str, Any]
Pair = tuple[Value, Value]


@dataclass(frozen=True)
class Array:
    """Rows that cover all pairs, and the pairs that no row can have.

    Attributes:
        rows: Rows in order.
        forbidden: Pair -> the reader's message, for a layout that accepts each value alone if one exists.
    """

    rows: list[Row]
    forbidden: dict[Pair, str]


def covering_array(space: Space, checker: RowChecker) -> Array:
    """Return rows that cover every allowed pair of a space; the same rows in the same order each time."""
    allowed, forbidden = sort_pairs(space, checker)
    open_pairs = dict.fromkeys(allowed)
    generator = Random(space.seed)
    rows = []
    while open_pairs:
        row = space.plain | _grow(space, dict(next(iter(open_pairs))), open_pairs, generator, checker)
        rows.append(row)
        for pair in pairs_of(row):
            open_pairs.pop(pair, None)
    return Array(rows, forbidden)


def pairs_of(row: Row) -> Iterator[Pair]:
    return combinations(((name, row[name]) for name in space_of(row).dimensions), 2)


def sort_pairs(space: Space, checker: RowChecker) -> tuple[list[Pair], dict[Pair, str]]:
    """Return the pairs that occur together in some row, and the others with the reason.

    A plain value of an option forbids nothing, so a pair that occurs in no row of plain values occurs in no row.
    """
    allowed: list[Pair] = []
    forbidden: dict[Pair, str] = {}
    for (first, ones), (second, twos) in combinations(space.dimensions.items(), 2):
        for pair in ((((first, one), (second, two))) for one in ones for two in twos):
            rows = list(_in_every_layout(space, dict(pair)))
            if any(not checker.rejection_of(space.plain | row) for row in rows):
                allowed.append(pair)
            else:
                nearest = max(rows, key=lambda row: _alone(space, row, pair, checker))
                forbidden[pair] = checker.rejection_of(space.plain | nearest)
    return allowed, forbidden


def _alone(space: Space, row: Row, pair: Pair, checker: RowChecker) -> int:
    """Return how many of two values this row's layout accepts without the other."""
    return sum(not checker.rejection_of({**space.plain, "layout": row["layout"], name: value}) for name, value in pair)


def _grow(space: Space, row: Row, open_pairs: dict[Pair, None], generator: Random, checker: RowChecker) -> Row:
    """Complete a row: choose one value after the other, each time the one that covers most open pairs.

    Ties are broken at random, so that more combinations of three and more values occur.
    """
    for name, values in space.dimensions.items():
        if name not in row:
            gains = {
                value: (_newly_covered(space, row, name, value, open_pairs), generator.random())
                for value in values
                if _is_allowed(space, row | {name: value}, checker)
            }
            row = row | {name: max(gains, key=gains.__getitem__)}
    return row


def _newly_covered(space: Space, row: Row, name: str, value: Any, open_pairs: dict[Pair, None]) -> int:
    order = list(space.dimensions)
    pairs = (((other, row[other]), (name, value)) for other in row)
    return sum((pair if order.index(pair[0][0]) < order.index(name) else pair[::-1]) in open_pairs for pair in pairs)


def _is_allowed(space: Space, row: Row, checker: RowChecker) -> bool:
    return any(not checker.rejection_of(space.plain | row) for row in _in_every_layout(space, row))


def _in_every_layout(space: Space, row: Row) -> Iterator[Row]:
    return iter([row] if "layout" in row else [{"layout": layout, **row} for layout in space.kinds])
