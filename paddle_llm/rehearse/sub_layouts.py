"""Which small layouts stand for a large one: its faces, each with as many ranks as a laptop has.

A layout is rehearsed whole when all its dimensions fit at their smallest degrees. Else several faces, each with some of the
dimensions, cover every pair of them, and what no face covers is said.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations, product

from paddle_llm.config.layout import Layout
from paddle_llm.core.errors import UserError

# The order in which a face is preferred, and grows: a third stage is the first that is neither the first nor the last.
_DIMENSIONS = ("pipeline", "tensor", "sharding", "data")
_SHORT = {"data": "dp", "sharding": "sharding", "tensor": "tp", "pipeline": "pp"}


@dataclass(frozen=True)
class Faces:
    """Attributes:
    layouts: to be run; one process where the layout is one.
    remarks: what is not as in the real layout, a line each.
    """

    layouts: list[Layout]
    remarks: list[str]


def faces_of(layout: Layout, ranks: int) -> Faces:
    """The layouts of at most `ranks` ranks that stand for `layout`.

    Raises:
        UserError: not even one dimension fits.
    """
    least = {name: _least(layout, name) for name in _DIMENSIONS if getattr(layout, name) > 1}
    if not least:
        return Faces([layout], [])
    for name, degree in least.items():
        if degree > ranks:
            virtual = " with virtual stages" if name == "pipeline" and degree > 2 else ""
            raise UserError(
                f"--ranks {ranks}: {_SHORT[name]}{virtual} needs at least {degree} ranks: give --ranks {degree} or more."
            )
    if math.prod(least.values()) <= ranks:
        degrees = [_grown(layout, least, ranks)]
    else:
        degrees = [{name: least[name] for name in face} for face in _cover(least, ranks)]
    layouts = [_face(layout, found) for found in degrees]
    return Faces(layouts, list(_remarks(layout, layouts, least, ranks)))


def _least(layout: Layout, name: str) -> int:
    """The smallest degree that is of the same kind; Paddle's interleaved schedule asks for more than two stages."""
    return 3 if name == "pipeline" and layout.virtual_stages > 1 else 2


def _grown(layout: Layout, least: dict[str, int], ranks: int) -> dict[str, int]:
    """The degrees, divisors of the real ones, that make best use of the ranks."""
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
    """Sets of dimensions that fit and together hold every pair that fits: most new pairs first, then fewest ranks."""
    sizes = range(len(least) - 1, 0, -1)
    candidates = [face for size in sizes for face in combinations(least, size) if _size(face, least) <= ranks]
    open_pairs = {pair for face in candidates for pair in combinations(face, 2)}
    open_single = set(least)
    chosen: list[tuple[str, ...]] = []
    while open_pairs or open_single:
        face = min(
            candidates,
            key=lambda face: (
                -len(open_pairs & set(combinations(face, 2))),
                -len(open_single & set(face)),
                _size(face, least),
            ),
        )
        chosen.append(face)
        open_pairs -= set(combinations(face, 2))
        open_single -= set(face)
    return chosen


def _size(face: tuple[str, ...], least: dict[str, int]) -> int:
    return math.prod(least[name] for name in face)


def _face(layout: Layout, degrees: dict[str, int]) -> Layout:
    found = Layout(**degrees)
    return replace(
        found,
        sharding_stage=layout.sharding_stage if found.sharding > 1 else 0,
        virtual_stages=min(layout.virtual_stages, 2) if found.pipeline > 1 else 1,
        sequence_parallel=layout.sequence_parallel and found.tensor > 1,
    )


def _remarks(layout: Layout, faces: list[Layout], least: dict[str, int], ranks: int) -> Iterator[str]:
    together = " x ".join(_SHORT[name] for name in reversed(least))
    if len(faces) > 1:
        needed = math.prod(least.values())
        why = " (virtual stages need a pipeline of at least 3)" if layout.virtual_stages > 1 else ""
        yield (
            f"{together} together need {needed} ranks{why}: rehearsed as {len(faces)} faces; "
            f"--ranks {needed} rehearses all at once"
        )
    pairs = [
        f"{_SHORT[one]} with {_SHORT[other]}"
        for other, one in combinations(least, 2)
        if not any(getattr(face, one) > 1 and getattr(face, other) > 1 for face in faces)
    ]
    if pairs:
        yield f"not covered with --ranks {ranks}: {', '.join(pairs)}"
    if layout.pipeline > 2 and all(face.pipeline <= 2 for face in faces):
        needed = 3 * math.prod(least.values()) // least["pipeline"]
        yield f"not covered with --ranks {ranks}: a pipeline stage between the first and the last; --ranks {needed} has one"
