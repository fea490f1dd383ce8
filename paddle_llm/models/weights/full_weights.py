"""Gather a model's full weights from the tensor-parallel ranks, one tensor at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from paddle_llm.config.layout import Layout
from paddle_llm.families import FAMILIES
from paddle_llm.models.weights.names import canonical_parameters
from paddle_llm.models.weights.shards import assemble, shard_of
from paddle_llm.models.weights.vocabulary import unpad
from paddle_llm.parallel.gather import gathered
from paddle_llm.parallel.mesh import current_mesh
from paddle_llm.parallel.zero.stage3 import gathered_weight

if TYPE_CHECKING:
    from paddle_llm.models.protocols import LanguageModel


def full_weights(model: LanguageModel, family: str, layout: Layout) -> Iterator[tuple[str, np.ndarray | None]]:
    """Yield the canonical name and the full tensor, without vocabulary padding, of each weight of this pipeline stage.

    Collective over the tensor-parallel group (and, in sharding stage 3, the sharding group): every rank of it must
    exhaust the iterator. Tensor-parallel rank 0 gets arrays, the other ranks get None. The memory needed is one full
    tensor. bfloat16 is returned as bits in uint16.

    Args:
        model: Network.
        family: Name of its family.
        layout: Layout of the job.
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


def family_name(model: LanguageModel) -> str:
    """Return the name of the family that a network belongs to."""
    classes = {cls.__name__ for cls in type(model).__mro__}
    for family in FAMILIES.values():
        wanted = {family.model_class.split(":")[1], (family.pipeline_class or ":").split(":")[1]}
        if classes & (wanted - {""}):
            return family.name
    raise KeyError(f"{type(model).__name__} does not belong to a supported family")
