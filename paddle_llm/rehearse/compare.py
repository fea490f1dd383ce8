"""Compare the records of a layout with those of one process, quantity by quantity, and check each difference.

The difference of a tensor is the Frobenius norm of the difference divided by that of the reference. A full tensor is
assembled from its tensor-parallel parts for every data, sharding and pipeline rank that has it, so replicas that differ
are found. The padding of the vocabulary is compared with zero.

A gradient that is zero in exact arithmetic consists of rounding errors, from which Adam makes steps in any direction.
Such tensors and parts of tensors (`zero_gradient` and `zero_gradient_part` of the family) are compared absolutely: the
difference is divided by the norm of another tensor, or of the rest of the tensor.

The difference of a weight is divided by the largest norm that the weight has had so far. AdaLoRA's singular values
start at zero and are pruned to zero: what remains of such a tensor may be the small difference of two steps, with the
rounding errors of both.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from paddle_llm.families import FAMILIES
from paddle_llm.models.weights.shards import assemble
from paddle_llm.rehearse.record import TENSORS, Part, RankRecord

SCALARS = ("loss", "grad_norm", "eval_loss")
QUANTITIES = (*SCALARS, *TENSORS)

# Limits for float32 in the first step; the second moment is a square. In later steps: FACTOR times the rounding floor.
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
# Largest limit as a multiple of the limit of the first step: a higher floor would allow more than rounding errors.
MAX_FACTOR = 100

Floor = dict[tuple[str, int], float]  # (quantity, step) -> largest difference that rounding causes


@dataclass(frozen=True)
class Difference:
    """One comparison.

    Attributes:
        quantity: One of QUANTITIES.
        step: Optimizer step, 1 for the first.
        tensor: Canonical name of the tensor; None for scalars.
        rank: First rank of the layout that has the tensor.
        value: Relative difference, or absolute in units of a norm; inf if a value is missing.
        limit: Largest difference allowed.
        absolute: Whether `value` is absolute.
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
        """Whether the difference is within its limit."""
        return self.value <= self.limit  # a NaN does not

    def __str__(self) -> str:
        where = f" of {self.tensor}" if self.tensor else ""
        unit = " (absolute)" if self.absolute else ""
        return f"{self.quantity}{where} at step {self.step} on rank {self.rank}: {self.value:.1e}{unit}, allowed {self.limit:.1e}"


def rounding_floor(one: RankRecord, other: RankRecord) -> Floor:
    """Return the largest differences between two trainings in one process that sum in different orders.

    A value that is exactly zero in only one of the two is excluded: its infinite difference would allow everything.

    Args:
        one: Record of one process.
        other: Record of the same training with other micro-batches.
    """
    floor: Floor = {}
    for found in _differences(one, [other]):
        key = (found.quantity, found.step)
        if not found.absolute and math.isfinite(found.value):
            floor[key] = max(floor.get(key, 0.0), found.value)
    return floor


def compare(reference: RankRecord, ranks: list[RankRecord], floor: Floor, limits: dict[str, float]) -> list[Difference]:
    """Return every difference between the reference and each rank's record, with its limit.

    A floor that exceeds the limits of the first step is reported as a difference, too: two runs in one process that are
    not the same training cannot measure rounding.

    Args:
        reference: Record of one process.
        ranks: Records of all ranks of the layout.
        floor: Rounding floor of the same training; {} if there is none.
        limits: Limits of the first step; they also hold in later steps if the floor is lower.
    """
    too_high = [
        Difference(quantity, step, "one process, with other micro-batches", 0, value, limits[quantity])
        for (quantity, step), value in floor.items()
        if step == 1 and value > limits[quantity]
    ]
    return too_high + [
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
    return min(max(first, FACTOR * floor.get((found.quantity, found.step), 0.0)), MAX_FACTOR * first)


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
    seen: dict[tuple[int, ...], set[str]] = {_whole(record.position, quantity): set() for record in ranks}
    for rank, position, name, full in _full_tensors(ranks, number, quantity):
        seen[_whole(position, quantity)].add(name)
        if name in expected:
            unit = _unit_of_zeros(reference.model, name, expected)
            least = _largest_norm(reference, number, name) if quantity == "weight" else 0.0
            for value, absolute in _tensor_difference(reference.model, name, full, expected[name].values, unit, least):
                yield Difference(quantity, number, name, rank, value, math.inf, absolute)
        elif np.any(full):  # stage 1 fills in zeros where there is no gradient
            yield Difference(quantity, number, name, rank, math.inf, math.inf)
    for whole, names in seen.items():
        rank = next(record.rank for record in ranks if _whole(record.position, quantity) == whole)
        for name in expected.keys() - names:
            if np.any(expected[name].values):
                yield Difference(quantity, number, name, rank, math.inf, math.inf)


def _whole(position: tuple[int, ...], quantity: str) -> tuple[int, ...]:
    """Return the part of a rank's position that identifies a full replica.

    Each sharding rank of a replica has all weights; gradients and moments are divided between the sharding ranks.
    """
    return position[:2] if quantity == "weight" else position[:1]


def missing_values(record: RankRecord, steps: int, evaluated: bool) -> list[str]:
    """Return the values that a record should contain and does not contain: they would never be compared.

    Args:
        record: Record of one process.
        steps: Optimizer steps of the training.
        evaluated: Whether each step is followed by an evaluation.
    """
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
    """Return the tensors of a quantity in a step; {} if the step was not recorded."""
    return record.steps[number].tensors[quantity] if number in record.steps else {}


def _full_tensors(
    ranks: list[RankRecord], number: int, quantity: str
) -> Iterator[tuple[int, tuple[int, ...], str, np.ndarray]]:
    """Return (rank, its position, name, full tensor) of every tensor that each group of tensor-parallel ranks holds."""
    groups: dict[tuple[int, int, int], list[RankRecord]] = {}
    for record in sorted(ranks, key=lambda record: record.position[2]):
        data, sharding, _, pipeline = record.position
        groups.setdefault((data, sharding, pipeline), []).append(record)
    for members in groups.values():
        position = members[0].position
        held = [step_tensors(member, number, quantity) for member in members]
        for name in dict.fromkeys(name for parts in held for name in parts):
            parts = [
                (member.rank, tensors[name]) for member, tensors in zip(members, held, strict=True) if name in tensors
            ]
            if parts[0][1].shard.is_split and len(parts) == len(members):
                full = assemble([part.shard for _, part in parts], [part.values for _, part in parts])
                yield parts[0][0], position, name, full
            elif not parts[0][1].shard.is_split:
                for rank, part in parts:
                    yield rank, position, name, part.values


def _unit_of_zeros(model: dict[str, Any], name: str, tensors: dict[str, Part]) -> float | None:
    """Return the norm that is the unit for a gradient that is zero in exact arithmetic; None for another tensor."""
    ending, other = FAMILIES[model["family"]].network.zero_gradient or ("\0", "")
    if not name.endswith(ending):
        return None
    return float(np.linalg.norm(tensors[name.removesuffix(ending) + other].values.astype(np.float64)))


def _largest_norm(reference: RankRecord, number: int, name: str) -> float:
    """Return the largest norm of a weight up to a step."""
    steps = [step for step in reference.steps if step <= number]
    held = [weights[name].values for step in steps if name in (weights := step_tensors(reference, step, "weight"))]
    return max(float(np.linalg.norm(values.astype(np.float64))) for values in held)


def _tensor_difference(
    model: dict[str, Any], name: str, found: np.ndarray, expected: np.ndarray, unit: float | None, least: float
) -> Iterator[tuple[float, bool]]:
    """Return (difference, whether it is absolute); two for a tensor with a part that is exactly zero.

    Args:
        model: Facts of the network (`RankRecord.model`).
        name: Canonical name of the tensor.
        found: Tensor of the layout, with the padding of the vocabulary.
        expected: Tensor of one process.
        unit: Divisor of the difference if the tensor is zero in exact arithmetic; None for any other tensor.
        least: Smallest divisor of the difference of any other tensor.
    """
    expected = np.pad(expected, [(0, n - m) for n, m in zip(found.shape, expected.shape, strict=True)])
    found, expected = found.astype(np.float64), expected.astype(np.float64)
    if unit is not None:
        yield _in_units(found - expected, unit), True
        return
    zeros = exact_zeros(model, name, found.shape)
    if zeros is None:
        yield _relative(found, expected, least), False
        return
    yield _relative(found[~zeros], expected[~zeros]), False
    yield _in_units(found[zeros] - expected[zeros], float(np.linalg.norm(expected[~zeros]))), True


def exact_zeros(model: dict[str, Any], name: str, shape: tuple[int, ...]) -> np.ndarray | None:
    """Return the mask of a tensor's part whose gradient is zero in exact arithmetic; None without such a part."""
    ending, which = FAMILIES[model["family"]].network.zero_gradient_part or ("\0", 0)
    if not name.endswith(ending):
        return None
    mask = np.zeros((model["heads"], 3, model["head_size"]), bool)
    mask[:, which] = True
    return mask.reshape(shape)


def _relative(found: np.ndarray | float, expected: np.ndarray | float, least: float = 0.0) -> float:
    size, difference = float(np.linalg.norm(expected)), float(np.linalg.norm(np.asarray(found) - np.asarray(expected)))
    return _ratio(difference, max(size, least))


def _in_units(difference: np.ndarray, unit: float) -> float:
    return _ratio(float(np.linalg.norm(difference)), unit)


def _ratio(difference: float, size: float) -> float:
    if size == 0.0:
        return 0.0 if difference == 0.0 else math.inf
    return difference / size


def worst_of(differences: list[Difference]) -> dict[str, Difference]:
    """Return the largest relative difference of each quantity; a failure precedes all passed differences."""
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
