"""Seconds of collectives between the ranks of an axis of the mesh.

Ring algorithms (Thakur et al., IJHPCA 19(1), 2005): of n bytes, g ranks move (g - 1) / g * n per rank for a gather or a
reduce-scatter and twice that for an all-reduce. A ring is as fast as its slowest link. Ranks of a machine that belong to the
same group use the network ports of all of them.
"""

from __future__ import annotations

from dataclasses import dataclass

from paddle_llm.planner.job import Job
from paddle_llm.planner.mesh import rank_distance
from paddle_llm.planner.time.machine import Machine

_START_SECONDS = 25e-6  # of a collective on one machine, with waiting for the last rank
_HOP_SECONDS = 1e-6  # per rank of the ring
_NETWORK_SECONDS = 15e-6  # if the ring crosses machines


@dataclass(frozen=True)
class Ring:
    """The ranks of one group of an axis.

    Attributes:
        ranks: Number of ranks.
        bandwidth: Bytes per second of the slowest link of the ring, in one direction.
        start: Seconds until the first bytes arrive.
        crosses: Whether the ring crosses machines.
    """

    ranks: int
    bandwidth: float
    start: float
    crosses: bool

    def all_reduce(self, size: float) -> float:
        """Return the seconds of an all-reduce of `size` bytes."""
        if self.ranks == 1:
            return 0.0
        return self.start + 2 * (self.ranks - 1) / self.ranks * size / self.bandwidth

    def gather(self, size: float) -> float:
        """Return the seconds of a gather or a reduce-scatter of `size` bytes in total."""
        if self.ranks == 1:
            return 0.0
        return self.start + (self.ranks - 1) / self.ranks * size / self.bandwidth

    def rooted(self, size: float, count: int) -> float:
        """Return the seconds of `count` reductions to one rank, or broadcasts from one, of `size` bytes in total."""
        return 0.0 if self.ranks == 1 else count * self.start + size / self.bandwidth

    def send(self, size: float) -> float:
        """Return the seconds of sending `size` bytes to a neighbour."""
        return 0.0 if self.ranks == 1 else self.start + size / self.bandwidth


def ring_of(job: Job, axis: str, machine: Machine) -> Ring:
    """Return the ring of an axis.

    Args:
        job: Training with its layout.
        axis: "data", "sharding", "tensor" or "pipeline".
        machine: Links.
    """
    ranks = int(getattr(job.layout, axis))
    distance, per_machine = rank_distance(job.layout, job.rank_order, axis), job.ranks_per_machine
    together = max(1, min(ranks, per_machine // distance))  # ranks of the group on one machine
    bandwidth, start = machine.gpu.link_bandwidth, _START_SECONDS + _HOP_SECONDS * ranks
    if together < ranks:
        # Of a pipeline, one rank sends to the next machine; a ring passes the data of all its ranks of a machine.
        ports = 1 if axis == "pipeline" else together
        bandwidth = min(bandwidth, machine.gpu.network_bandwidth * ports)
        start += _NETWORK_SECONDS
    return Ring(ranks, bandwidth * machine.efficiency.link, start, together < ranks)
