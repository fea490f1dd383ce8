"""The groups of ranks of a layout, as fleet forms them, and which of them cross machines."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product
from typing import Literal

from paddle_llm.config.layout import Layout

Order = Literal["pp_first", "sharding_first"]
# Axes from the outermost to the innermost one, whose neighbours have consecutive ranks (paddlenlp 3.0.0b4, TrainingArguments).
_AXES: dict[Order, tuple[str, ...]] = {
    "pp_first": ("data", "pipeline", "sharding", "tensor"),
    "sharding_first": ("data", "sharding", "pipeline", "tensor"),
}


@dataclass(frozen=True)
class Groups:
    """All groups of one axis.

    Attributes:
        axis: "data", "sharding", "tensor" or "pipeline".
        groups: Ranks of each group, in the order of the axis.
        crossing: Number of groups whose ranks are on more than one machine.
    """

    axis: str
    groups: tuple[tuple[int, ...], ...]
    crossing: int


def groups_of(layout: Layout, order: Order, ranks_per_machine: int) -> list[Groups]:
    """Return the groups of every axis with more than one rank, from the innermost axis outwards.

    Args:
        layout: Layout of the job.
        order: Order of the axes.
        ranks_per_machine: Ranks on one machine, which have consecutive numbers.
    """
    axes = _AXES[order]
    return [_groups(layout, axes, axis, ranks_per_machine) for axis in reversed(axes) if int(getattr(layout, axis)) > 1]


def rank_distance(layout: Layout, order: Order, axis: str) -> int:
    """Return the difference between the numbers of neighbouring ranks on an axis."""
    axes = _AXES[order]
    return math.prod(int(getattr(layout, inner)) for inner in axes[axes.index(axis) + 1 :])


def crosses_machines(layout: Layout, order: Order, axis: str, ranks_per_machine: int) -> bool:
    """Return whether a group of an axis has ranks on more than one machine."""
    return any(groups.axis == axis and groups.crossing for groups in groups_of(layout, order, ranks_per_machine))


def _groups(layout: Layout, axes: tuple[str, ...], axis: str, ranks_per_machine: int) -> Groups:
    sizes = [int(getattr(layout, name)) for name in axes]
    strides = [math.prod(sizes[index + 1 :]) for index in range(len(axes))]
    at = axes.index(axis)
    others = [range(size) if index != at else (0,) for index, size in enumerate(sizes)]
    found = []
    for position in product(*others):
        first = sum(place * stride for place, stride in zip(position, strides, strict=True))
        found.append(tuple(first + number * strides[at] for number in range(sizes[at])))
    crossing = sum(len({rank // ranks_per_machine for rank in group}) > 1 for group in found)
    return Groups(axis, tuple(found), crossing)
