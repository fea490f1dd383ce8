"""Choose small layouts that represent a large one, each with at most as many ranks as a laptop can run.

If all parallel dimensions of the layout fit at their smallest degrees, it is rehearsed as one layout. Otherwise several
sub-layouts, each with some of the dimensions, cover every pair of them, and what they do not cover is reported.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations, product

from paddle_llm.config.layout import Layout
from paddle_llm.core.errors import UserError

# In the order in which their degrees grow, because a third pipeline stage is the first one in the middle.
_DIMENSIONS = ("pipeline", "tensor", "sharding", "data")
_SHORT = {"data": "dp", "sharding": "sharding", "tensor": "tp", "pipeline": "pp"}


@dataclass(frozen=True)
class SubLayouts:
    """The layouts that represent a layout.

    Attributes:
        layouts: Layouts to run; one process for a layout of one rank.
        remarks: Differences from the real layout, one line each.
    """

    layouts: list[Layout]
    remarks: list[str]


def sub_layouts_of(layout: Layout, ranks: int) -> SubLayouts:
    """Return the layouts of at most `ranks` ranks that represent `layout`.

    Raises:
        UserError: If not even one dimension fits.
    """
    least = {name: _smallest_degree(layout, name) for name in _DIMENSIONS if getattr(layout, name) > 1}
    if not least:
        return SubLayouts([layout], [])
    for name, degree in least.items():
        if degree > ranks:
            virtual = " with virtual stages" if name == "pipeline" and degree > 2 else ""
            raise UserError(
                f"--ranks {ranks}: {_SHORT[name]}{virtual} needs at least {degree} ranks. Use --ranks {degree} or more."
            )
    if math.prod(least.values()) <= ranks:
        degrees = [_largest_fitting(layout, least, ranks)]
    else:
        degrees = [{name: least[name] for name in chosen} for chosen in _cover(least, ranks)]
    layouts = [_sub_layout(layout, found) for found in degrees]
    return SubLayouts(layouts, list(_remarks(layout, layouts, least, ranks)))


def _smallest_degree(layout: Layout, name: str) -> int:
    """Return the smallest degree above 1; Paddle's interleaved schedule needs more than two stages."""
    return 3 if name == "pipeline" and layout.virtual_stages > 1 else 2


def _largest_fitting(layout: Layout, least: dict[str, int], ranks: int) -> dict[str, int]:
    """Return the degrees that use most ranks. They divide the real ones; a pipeline may have three stages instead."""
    choices = []
    for name, lowest in least.items():
        real = getattr(layout, name)
        divisors = {degree for degree in range(lowest, min(real, ranks) + 1) if real % degree == 0}
        middle = {3} if name == "pipeline" and real > 2 else set()
        choices.append(sorted({lowest} | divisors | middle))
    fitting = [dict(zip(least, found, strict=True)) for found in product(*choices) if math.prod(found) <= ranks]
    return max(
        fitting,
        key=lambda found: (found.get("pipeline", 0) > 2, math.prod(found.values()), *found.values()),
    )


def _cover(least: dict[str, int], ranks: int) -> list[tuple[str, ...]]:
    """Return sets of dimensions that fit, and that together contain every pair that fits.

    The sets are chosen one by one: the one with the most new pairs and, among equals, the one with the fewest ranks.
    """
    sizes = range(len(least) - 1, 0, -1)
    candidates = [found for size in sizes for found in combinations(least, size) if _size(found, least) <= ranks]
    uncovered_pairs = {pair for found in candidates for pair in combinations(found, 2)}
    uncovered = set(least)
    chosen: list[tuple[str, ...]] = []
    while uncovered_pairs or uncovered:
        best = min(
            candidates,
            key=lambda found: (
                -len(uncovered_pairs & set(combinations(found, 2))),
                -len(uncovered & set(found)),
                _size(found, least),
            ),
        )
        chosen.append(best)
        uncovered_pairs -= set(combinations(best, 2))
        uncovered -= set(best)
    return chosen


def _size(dimensions: tuple[str, ...], least: dict[str, int]) -> int:
    return math.prod(least[name] for name in dimensions)


def _sub_layout(layout: Layout, degrees: dict[str, int]) -> Layout:
    found = replace(Layout(), **degrees)  # type: ignore[arg-type]
    return replace(
        found,
        sharding_stage=layout.sharding_stage if found.sharding > 1 else 0,
        virtual_stages=min(layout.virtual_stages, 2) if found.pipeline > 1 else 1,
        sequence_parallel=layout.sequence_parallel and found.tensor > 1,
    )


def _remarks(layout: Layout, layouts: list[Layout], least: dict[str, int], ranks: int) -> Iterator[str]:
    together = " x ".join(_SHORT[name] for name in reversed(least))
    if len(layouts) > 1:
        needed = math.prod(least.values())
        why = " (virtual stages need a pipeline of at least 3)" if layout.virtual_stages > 1 else ""
        yield (
            f"{together} together need {needed} ranks{why}: rehearsing {len(layouts)} smaller layouts instead. "
            f"--ranks {needed} rehearses all dimensions at once."
        )
    pairs = [
        f"{_SHORT[one]} with {_SHORT[other]}"
        for other, one in combinations(least, 2)
        if not any(getattr(found, one) > 1 and getattr(found, other) > 1 for found in layouts)
    ]
    if pairs:
        yield f"not covered with --ranks {ranks}: {', '.join(pairs)}"
    if layout.pipeline > 2 and all(found.pipeline <= 2 for found in layouts):
        needed = 3 * math.prod(least.values()) // least["pipeline"]
        yield (
            f"not covered with --ranks {ranks}: a pipeline stage between the first and the last; --ranks {needed} covers it"
        )
