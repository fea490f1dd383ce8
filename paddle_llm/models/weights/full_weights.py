"""Gather a model's full weights from the tensor-parallel ranks, one tensor at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from paddle_llm.config.layout import Layout
from paddle_llm.families import FAMILIES
from paddle_llm.models.weights.names import canonical_parameters
from paddle_llm.models.weights.shards import Shard, shard_of
from paddle_llm.models.weights.vocabulary import unpad
from paddle_llm.parallel.gather import gathered
from paddle_llm.parallel.mesh import current_mesh
from paddle_llm.parallel.zero.stage3 import gathered_weight


def full_weights(model: Any, family: str, layout: Layout) -> Iterator[tuple[str, np.ndarray | None]]:
    """(canonical name, full tensor without vocabulary padding) of everything that this pipeline stage holds.

    Collective over the tensor-parallel group (and, in sharding stage 3, the sharding group): every rank of it must
    exhaust the iterator; its tensor-parallel rank 0 gets the arrays, the others None. Memory: one full tensor. bfloat16
    comes as its bits in uint16.
    """
    axis = current_mesh(layout).tensor
    for name, parameter in canonical_parameters(model, family):
        split = axis.size > 1 and bool(getattr(parameter, "is_distributed", False))
        with gathered_weight(model, parameter):
            parts = gathered(parameter, axis) if split else [parameter.numpy()] if axis.rank == 0 else None
        if parts is None:
            yield name, None
            continue
        shards = [
            shard_of(family, name, parameter.shape, split, model.config, axis.size, rank) for rank in range(len(parts))
        ]
        yield name, unpad(family, name, assemble(shards, parts), model.config)


def assemble(shards: list[Shard], parts: list[np.ndarray]) -> np.ndarray:
    """Return the full tensor; `parts[r]` of rank r is described by `shards[r]`."""
    full = np.empty(shards[0].shape, parts[0].dtype)
    for shard, part in zip(shards, parts, strict=True):
        target, source, offset = [slice(None)] * full.ndim, [slice(None)] * full.ndim, 0
        for start, stop in shard.ranges:
            target[shard.axis] = slice(start, stop)
            source[shard.axis] = slice(offset, offset + stop - start)
            full[tuple(target)] = part[tuple(source)]
            offset += stop - start
    return full


def family_name(model: Any) -> str:
    """Return the name of the family that a network belongs to."""
    classes = {cls.__name__ for cls in type(model).__mro__}
    for family in FAMILIES.values():
        wanted = {family.model_class.split(":")[1], (family.pipeline_class or ":").split(":")[1]}
        if classes & (wanted - {""}):
            return family.name
    raise KeyError(f"{type(model).__name__} does not belong to a supported family")
