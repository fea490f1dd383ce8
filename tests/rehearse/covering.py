"""A pairwise covering array: every allowed pair of values of layouts and options occurs in some row.

Most wrong compositions are wrong for two of their parts already (Kuhn, Wallace & Gallo 2004, "Software fault interactions
and implications for software testing"); all of them would be some millions of rows. Greedy, after Cohen et al. 1997 ("The
AETG system"). Not by a library: allpairspy (2.5.1), given the rules as its filter, ends when half of its rows are found.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from random import Random
from typing import Any

from tests.rehearse.options import Judge
from tests.rehearse.spaces import Row, Space, space_of

Value = tuple[str, Any]
Pair = tuple[Value, Value]


@dataclass(frozen=True)
class Array:
    """Rows that cover all pairs, and the pairs that no row can have.

    Attributes:
        forbidden: pair -> why, in the reader's words (of a layout that takes either value alone, where there is one).
    """

    rows: list[Row]
    forbidden: dict[Pair, str]


def covering_array(space: Space, judge: Judge) -> Array:
    """Deterministic: the same rows in the same order each time."""
    allowed, forbidden = sort_pairs(space, judge)
    open_pairs = dict.fromkeys(allowed)
    dice = Random(space.seed)
    rows = []
    while open_pairs:
        row = space.plain | _grow(space, dict(next(iter(open_pairs))), open_pairs, dice, judge)
        rows.append(row)
        for pair in pairs_of(row):
            open_pairs.pop(pair, None)
    return Array(rows, forbidden)


def pairs_of(row: Row) -> Iterator[Pair]:
    return combinations(((name, row[name]) for name in space_of(row).dimensions), 2)


def sort_pairs(space: Space, judge: Judge) -> tuple[list[Pair], dict[Pair, str]]:
    """Return the pairs that occur together in some row, and the others with the reason.

    A plain value of an option forbids nothing, so a pair that occurs in no row of plain values occurs in no row.
    """
    allowed: list[Pair] = []
    forbidden: dict[Pair, str] = {}
    for (first, ones), (second, twos) in combinations(space.dimensions.items(), 2):
        for pair in ((((first, one), (second, two))) for one in ones for two in twos):
            rows = list(_in_every_layout(space, dict(pair)))
            if any(not judge.why_not(space.plain | row) for row in rows):
                allowed.append(pair)
            else:
                nearest = max(rows, key=lambda row: _alone(space, row, pair, judge))
                forbidden[pair] = judge.why_not(space.plain | nearest)
    return allowed, forbidden


def _alone(space: Space, row: Row, pair: Pair, judge: Judge) -> int:
    """Return how many of two values this row's layout accepts without the other."""
    return sum(not judge.why_not({**space.plain, "layout": row["layout"], name: value}) for name, value in pair)


def _grow(space: Space, row: Row, open_pairs: dict[Pair, None], dice: Random, judge: Judge) -> Row:
    """A complete row: one value after the other, each the one that closes most open pairs with those before it.

    Dice decide between values that close as many: more is seen together than the pairs ask for.
    """
    for name, values in space.dimensions.items():
        if name not in row:
            gains = {
                value: (_closes(space, row, name, value, open_pairs), dice.random())
                for value in values
                if _stands(space, row | {name: value}, judge)
            }
            row = row | {name: max(gains, key=gains.__getitem__)}
    return row


def _closes(space: Space, row: Row, name: str, value: Any, open_pairs: dict[Pair, None]) -> int:
    order = list(space.dimensions)
    pairs = (((other, row[other]), (name, value)) for other in row)
    return sum((pair if order.index(pair[0][0]) < order.index(name) else pair[::-1]) in open_pairs for pair in pairs)


def _stands(space: Space, row: Row, judge: Judge) -> bool:
    return any(not judge.why_not(space.plain | row) for row in _in_every_layout(space, row))


def _in_every_layout(space: Space, row: Row) -> Iterator[Row]:
    return iter([row] if "layout" in row else [{"layout": layout, **row} for layout in space.kinds])
