"""Where this rank stands in the layout, by the names of `Layout`: a thin reading of fleet's own topology."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from paddle_llm.config.layout import Layout

AXES = ("data", "sharding", "tensor", "pipeline")
# What fleet's HybridCommunicateGroup calls them.
_FLEET_NAMES = {"data": "data", "sharding": "sharding", "tensor": "model", "pipeline": "pipe"}


@dataclass(frozen=True)
class Axis:
    """This rank's place on one axis of the mesh.

    Attributes:
        rank, size: place among the ranks that differ from this one on this axis only, and their number.
        ranks: their global ranks.
        group: paddle's Group; None where the axis has one rank, for which Paddle makes no working group.
    """

    rank: int
    size: int
    ranks: tuple[int, ...]
    group: Any


@dataclass(frozen=True)
class Mesh:
    """This rank's place on every axis."""

    data: Axis
    sharding: Axis
    tensor: Axis
    pipeline: Axis

    @property
    def data_rank(self) -> int:
        """Which of the `Layout.data_world_size` parts of a global batch this rank reads."""
        return self.data.rank * self.sharding.size + self.sharding.rank


def current_mesh(layout: Layout) -> Mesh:
    """The mesh of a running job; fleet is initialised when `layout.world_size` is above 1.

    Raises:
        RuntimeError: when fleet was initialised with other degrees than the layout's.
    """
    if layout.world_size == 1:
        alone = Axis(0, 1, (0,), None)
        return Mesh(alone, alone, alone, alone)
    return Mesh(**{name: _axis(name, getattr(layout, name)) for name in AXES})


def _axis(name: str, degree: int) -> Axis:
    import paddle
    from paddle.distributed import fleet

    hcg = fleet.get_hybrid_communicate_group() if hasattr(fleet.fleet, "_hcg") else None
    if hcg is None:
        # PaddleNLP makes plain data parallelism without a mesh.
        world, rank = paddle.distributed.get_world_size(), paddle.distributed.get_rank()
        place = (rank, world, tuple(range(world))) if name == "data" else (0, 1, (rank,))
        group = paddle.distributed.collective._get_default_group() if name == "data" else None
    else:
        upstream = _FLEET_NAMES[name]
        group = getattr(hcg, f"get_{upstream}_parallel_group")()
        size = getattr(hcg, f"get_{upstream}_parallel_world_size")()
        rank = hcg.get_stage_id() if name == "pipeline" else getattr(hcg, f"get_{upstream}_parallel_rank")()
        place = (rank, size, tuple(group.ranks))
    if place[1] != degree:
        raise RuntimeError(f"the layout says {name} {degree}, but fleet was initialised with {place[1]}")
    return Axis(*place, group if degree > 1 else None)
