"""How far a layout's records are from one process's, quantity by quantity, and what is allowed.

A tensor's difference is the Frobenius norm of the difference over that of the reference. A full tensor is put together
from its tensor-parallel parts for every data, sharding and pipeline rank that has it, so replicas that drift apart are
found; padding of the vocabulary is compared with zero.

Where a gradient is zero in exact arithmetic, what is left is rounding, which Adam turns into steps of any sign: those
parts (`zero_gradient_part` of the family) are compared absolutely, with the size of the rest as the unit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from paddle_llm.families import FAMILIES
from paddle_llm.models.weights.full_weights import assemble
from paddle_llm.rehearse.record import TENSORS, Part, RankRecord

SCALARS = ("loss", "grad_norm", "eval_loss")
QUANTITIES = (*SCALARS, *TENSORS)

# What float32 may do in one step; the second moment is a square. Later steps: at most FACTOR times the rounding floor.
FIRST_STEP_LIMITS = {
    "loss": 1e-6,
    "grad_norm": 1e-5,
    "eval_loss": 1e-6,
    "gradient": 1e-5,
    "weight": 1e-5,
    "moment1": 1e-5,
    "moment2": 2e-5,
}
FACTOR = 5
# However rough a training is: a floor beyond this would allow what no rounding does.
MOST = 100

Floor = dict[tuple[str, int], float]


@dataclass(frozen=True)
class Difference:
    """One comparison.

    Attributes:
        quantity: one of QUANTITIES.
        step: 1 for the first.
        tensor: canonical name; None for scalars.
        rank: the first rank of the layout that holds it.
        value: relative, or in units of the whole tensor's norm where `absolute`; inf where something is missing.
        limit: what was allowed.
    """

    quantity: str
    step: int
    tensor: str | None
    rank: int
    value: float
    limit: float
    absolute: bool = False

    @property
    def passed(self) -> bool:
        return self.value <= self.limit  # a NaN does not

    def __str__(self) -> str:
        where = f" of {self.tensor}" if self.tensor else ""
        unit = " (absolute)" if self.absolute else ""
        return f"{self.quantity}{where} at step {self.step} on rank {self.rank}: {self.value:.1e}{unit}, allowed {self.limit:.1e}"


def rounding_floor(one: RankRecord, other: RankRecord) -> Floor:
    """(quantity, step) -> the largest difference between two ways of summing in one process.

    What is exactly zero in one of the two alone says nothing of rounding: an infinite floor would allow everything.
    """
    floor: Floor = {}
    for found in _differences(one, [other]):
        key = (found.quantity, found.step)
        if not found.absolute and math.isfinite(found.value):
            floor[key] = max(floor.get(key, 0.0), found.value)
    return floor


def compare(reference: RankRecord, ranks: list[RankRecord], floor: Floor, limits: dict[str, float]) -> list[Difference]:
    """Every difference between the reference and each rank's record, with its limit.

    The floor itself is among them where it is beyond the first step's limits already: two runs in one process that are not
    the same training cannot be a measure of anything.

    Args:
        reference: of one process.
        ranks: of all ranks of the layout.
        floor: of the same training; {} when there is none.
        limits: of the first step; they hold later, too, where the floor is lower.
    """
    unlike = [
        Difference(quantity, step, "one process, in other micro batches", 0, value, limits[quantity])
        for (quantity, step), value in floor.items()
        if step == 1 and value > limits[quantity]
    ]
    return unlike + [
        Difference(
            found.quantity,
            found.step,
            found.tensor,
            found.rank,
            found.value,
            _limit(found, floor, limits),
            found.absolute,
        )
        for found in _differences(reference, ranks)
    ]


def _limit(found: Difference, floor: Floor, limits: dict[str, float]) -> float:
    first = limits[found.quantity]
    if found.step == 1:
        return first
    return min(max(first, FACTOR * floor.get((found.quantity, found.step), 0.0)), MOST * first)


def _differences(reference: RankRecord, ranks: list[RankRecord]) -> Iterator[Difference]:
    for number, step in sorted(reference.steps.items()):
        for record in ranks:
            found = record.steps.get(number)
            for name, expected in step.scalars.items():
                value = _relative(found.scalars.get(name, math.nan), expected) if found else math.inf
                yield Difference(name, number, None, record.rank, value, math.inf)
        for quantity in TENSORS:
            yield from _tensor_differences(reference, ranks, number, quantity)


def _tensor_differences(
    reference: RankRecord, ranks: list[RankRecord], number: int, quantity: str
) -> Iterator[Difference]:
    expected = step_tensors(reference, number, quantity)
    seen: dict[tuple[int, ...], set[str]] = {_whole(record.place, quantity): set() for record in ranks}
    for rank, place, name, full in _full_tensors(ranks, number, quantity):
        seen[_whole(place, quantity)].add(name)
        if name in expected:
            unit = _unit_of_zeros(reference.model, name, expected)
            for value, absolute in _tensor_difference(reference.model, name, full, expected[name].values, unit):
                yield Difference(quantity, number, name, rank, value, math.inf, absolute)
        elif np.any(full):  # stage 1 fills in zeros where there is no gradient
            yield Difference(quantity, number, name, rank, math.inf, math.inf)
    for whole, names in seen.items():
        rank = next(record.rank for record in ranks if _whole(record.place, quantity) == whole)
        for name in expected.keys() - names:
            if np.any(expected[name].values):
                yield Difference(quantity, number, name, rank, math.inf, math.inf)


def _whole(place: tuple[int, ...], quantity: str) -> tuple[int, ...]:
    """Ranks that have everything between them: each sharding rank of a replica has all weights, its owners the rest."""
    return place[:2] if quantity == "weight" else place[:1]


def lacking(record: RankRecord, steps: int, evaluated: bool) -> list[str]:
    """What a training of so many steps should have been seen to do and was not; what no record has is never compared."""
    scalars = SCALARS if evaluated else SCALARS[:-1]
    found = []
    for number in range(1, steps + 1):
        step = record.steps.get(number)
        names = [
            *(name for name in scalars if step is None or name not in step.scalars),
            *(name for name in TENSORS if step is None or not step.tensors[name]),
        ]
        found += [f"{name} at step {number}" for name in names]
    return found


def step_tensors(record: RankRecord, number: int, quantity: str) -> dict[str, Part]:
    return record.steps[number].tensors[quantity] if number in record.steps else {}


def _full_tensors(
    ranks: list[RankRecord], number: int, quantity: str
) -> Iterator[tuple[int, tuple[int, ...], str, np.ndarray]]:
    """(rank, its place, name, full tensor) of everything that each group of tensor-parallel ranks holds."""
    groups: dict[tuple[int, int, int], list[RankRecord]] = {}
    for record in sorted(ranks, key=lambda record: record.place[2]):
        data, sharding, _, pipeline = record.place
        groups.setdefault((data, sharding, pipeline), []).append(record)
    for members in groups.values():
        place = members[0].place
        held = [step_tensors(member, number, quantity) for member in members]
        for name in dict.fromkeys(name for parts in held for name in parts):
            parts = [(member.rank, of[name]) for member, of in zip(members, held, strict=True) if name in of]
            if parts[0][1].shard.is_split and len(parts) == len(members):
                full = assemble([part.shard for _, part in parts], [part.values for _, part in parts])
                yield parts[0][0], place, name, full
            elif not parts[0][1].shard.is_split:
                for rank, part in parts:
                    yield rank, place, name, part.values


def _unit_of_zeros(model: dict, name: str, tensors: dict[str, Part]) -> float | None:
    """For a tensor that is zero in exact arithmetic: the size of the one that it is measured by."""
    ending, other = FAMILIES[model["family"]].network.zero_gradient or ("\0", "")
    if not name.endswith(ending):
        return None
    return float(np.linalg.norm(tensors[name.removesuffix(ending) + other].values.astype(np.float64)))


def _tensor_difference(
    model: dict, name: str, found: np.ndarray, expected: np.ndarray, unit: float | None
) -> Iterator[tuple[float, bool]]:
    """(difference, whether it is absolute), two of them for a tensor with a part that is zero in exact arithmetic."""
    expected = np.pad(expected, [(0, n - m) for n, m in zip(found.shape, expected.shape, strict=True)])
    found, expected = found.astype(np.float64), expected.astype(np.float64)
    if unit is not None:
        yield _in_units(found - expected, unit), True
        return
    zeros = exact_zeros(model, name, found.shape)
    if zeros is None:
        yield _relative(found, expected), False
        return
    yield _relative(found[~zeros], expected[~zeros]), False
    yield _in_units(found[zeros] - expected[zeros], float(np.linalg.norm(expected[~zeros]))), True


def exact_zeros(model: dict, name: str, shape: tuple[int, ...]) -> np.ndarray | None:
    """Where the gradient of this tensor is zero in exact arithmetic; None where nowhere."""
    ending, which = FAMILIES[model["family"]].network.zero_gradient_part or ("\0", 0)
    if not name.endswith(ending):
        return None
    mask = np.zeros((model["heads"], 3, model["head_size"]), bool)
    mask[:, which] = True
    return mask.reshape(shape)


def _relative(found, expected) -> float:
    size, difference = float(np.linalg.norm(expected)), float(np.linalg.norm(np.asarray(found) - np.asarray(expected)))
    return _ratio(difference, size)


def _in_units(difference: np.ndarray, unit: float) -> float:
    return _ratio(float(np.linalg.norm(difference)), unit)


def _ratio(difference: float, size: float) -> float:
    if size == 0.0:
        return 0.0 if difference == 0.0 else math.inf
    return difference / size


def worst_of(differences: list[Difference]) -> dict[str, Difference]:
    """The largest relative difference of each quantity, failures first."""
    worst: dict[str, Difference] = {}
    for found in differences:
        if found.absolute and found.passed:
            continue
        before = worst.get(found.quantity)
        if before is None or _severity(found) > _severity(before):
            worst[found.quantity] = found
    return worst


def _severity(found: Difference) -> tuple[bool, float]:
    return (not found.passed, math.inf if math.isnan(found.value) else found.value)
