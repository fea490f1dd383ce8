"""The position of this rank in the layout, by the names of `Layout`, read from fleet's topology."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from paddle_llm.config.layout import Layout

if TYPE_CHECKING:
    from paddle.distributed.collective import Group

AXES = ("data", "sharding", "tensor", "pipeline")
# Names in fleet's HybridCommunicateGroup.
_FLEET_NAMES = {"data": "data", "sharding": "sharding", "tensor": "model", "pipeline": "pipe"}


@dataclass(frozen=True)
class Axis:
    """One axis of the mesh through this rank: this rank and the ranks that differ from it on this axis only.

    Attributes:
        rank: Position of this rank on the axis.
        size: Number of ranks on the axis.
        ranks: Global ranks of the axis.
        group: Group of these ranks; None for one rank, for which Paddle creates no usable group.
    """

    rank: int
    size: int
    ranks: tuple[int, ...]
    group: Group | None


@dataclass(frozen=True)
class Mesh:
    """The position of this rank on every axis.

    Attributes:
        data: Data-parallel axis.
        sharding: Sharding axis.
        tensor: Tensor-parallel axis.
        pipeline: Pipeline axis.
    """

    data: Axis
    sharding: Axis
    tensor: Axis
    pipeline: Axis

    @property
    def data_rank(self) -> int:
        """Index of the part of a global batch that this rank reads, from 0 to `Layout.data_world_size` - 1."""
        return self.data.rank * self.sharding.size + self.sharding.rank


def current_mesh(layout: Layout) -> Mesh:
    """Return the mesh of a running job.

    Args:
        layout: Layout of the job; with more than one rank, fleet must be initialised.

    Raises:
        RuntimeError: If fleet was initialised with other degrees than the layout's.
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
        # PaddleNLP runs plain data parallelism without fleet's topology.
        world, rank = paddle.distributed.get_world_size(), paddle.distributed.get_rank()
        rank, size, ranks = (rank, world, tuple(range(world))) if name == "data" else (0, 1, (rank,))
        group = paddle.distributed.collective._get_default_group() if name == "data" else None
    else:
        upstream = _FLEET_NAMES[name]
        group = getattr(hcg, f"get_{upstream}_parallel_group")()
        size = getattr(hcg, f"get_{upstream}_parallel_world_size")()
        rank = hcg.get_stage_id() if name == "pipeline" else getattr(hcg, f"get_{upstream}_parallel_rank")()
        ranks = tuple(group.ranks)
    if size != degree:
        raise RuntimeError(f"the layout has {name} degree {degree}, but fleet was initialised with {size}")
    return Axis(rank, size, ranks, group if degree > 1 else None)
