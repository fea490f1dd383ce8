"""Which of the ranks that hold the same values writes them to a checkpoint.

Data-parallel ranks hold copies of everything, the ranks of a sharding group copies of the weights (stages 1 and 2), and
tensor-parallel ranks copies of unsplit tensors. One of them writes. If machines have separate disks, one rank per disk
does, so that each disk has all that its ranks need to resume.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

import paddle.distributed as dist

from paddle_llm.checkpoint.saving.protocol import Member, SaveFailed, create_folder
from paddle_llm.checkpoint.training_state.local_weights import LocalWeight
from paddle_llm.config.layout import Layout
from paddle_llm.parallel.mesh import AXES, current_mesh

_DISK_MARK = ".disk"
T = TypeVar("T")


@dataclass(frozen=True)
class Writers:
    """The ranks of a job by position and disk.

    Attributes:
        position: Position of this rank: (data, sharding, tensor, pipeline).
        degrees: Degrees of the layout in the same order.
        disk: Number of the disk of this rank.
        disks: Number of the disk of each rank by position.
        rank: Rank of this process.
        first_on_disk: Whether this rank is the lowest one on its disk.
    """

    position: tuple[int, int, int, int]
    degrees: tuple[int, int, int, int]
    disk: int
    disks: dict[tuple[int, int, int, int], int]
    rank: int
    first_on_disk: bool

    @property
    def shares_disk(self) -> bool:
        """Whether all ranks see the same folder."""
        return len(set(self.disks.values())) == 1

    @property
    def tensor_degree(self) -> int:
        """Tensor-parallel degree."""
        return self.degrees[2]

    @property
    def tensor_rank(self) -> int:
        """Tensor-parallel rank."""
        return self.position[2]

    @property
    def member(self) -> Member:
        """This rank as the protocol of saving sees it."""
        return Member(self.rank, self.disk, self.first_on_disk, self.shares_disk)

    def writes(self, weight: LocalWeight, *, owner: int, replicated: bool, split: bool) -> bool:
        """Return whether this rank writes a tensor that it holds.

        Args:
            weight: Weight to which the tensor belongs.
            owner: Sharding rank that owns it.
            replicated: Whether the other ranks of the sharding group hold the tensor, too.
            split: Whether tensor-parallel ranks hold different parts of the tensor.
        """
        if weight.is_copy and self.shares_disk:
            return False
        _, _, tensor, pipeline = self.position
        others = [rank for rank in range(self.degrees[1]) if rank != owner] if replicated else []
        tensors = [tensor] if split else range(self.degrees[2])
        for one_tensor, data, sharding in product(tensors, range(self.degrees[0]), [owner, *others]):
            candidate = (data, sharding, one_tensor, pipeline)
            if self.disks[candidate] == self.disk:
                return candidate == self.position
        return False


def find_writers(layout: Layout, folder: Path) -> Writers:
    """Find out which ranks see the same disk. Collective over all ranks.

    Args:
        layout: Layout of the job.
        folder: New folder that each disk gets; the lowest rank of each disk creates it. An older one is removed.

    Raises:
        SaveFailed: If it cannot be created; on all ranks.
    """
    mesh = current_mesh(layout)
    position = tuple(getattr(mesh, name).rank for name in AXES)
    degrees = tuple(getattr(mesh, name).size for name in AXES)
    rank, disk, mark = dist.get_rank(), -1, ""
    while True:  # in each round, the lowest rank without a disk creates the folder on its own
        without = [one for one, found in enumerate(gather_objects(disk)) if found < 0]
        if not without:
            break
        problem = None
        if rank == without[0]:
            mark = uuid4().hex
            problem = _mark(folder, mark)
        created = gather_objects((mark, problem))[without[0]]
        if created[1] is not None:
            raise SaveFailed(
                f"{folder} cannot be written: {created[1]}. Free disk space or choose another --output_dir."
            )
        if disk < 0 and _read(folder) == created[0]:
            disk = without[0]
    positions = dict(gather_objects((position, disk)))
    if rank == disk:
        (folder / _DISK_MARK).unlink()
    return Writers(position, degrees, disk, positions, rank, rank == disk)


def gather_objects(mine: T) -> list[T]:
    """Return an object of every rank, by rank. Collective over all ranks."""
    if dist.get_world_size() == 1:
        return [mine]
    found: list[T] = []
    dist.all_gather_object(found, mine)
    return found


def _mark(folder: Path, mark: str) -> str | None:
    """Create the folder and a file in it that no other disk has; return why that is not possible."""
    try:
        create_folder(folder)
        (folder / _DISK_MARK).write_text(mark)
    except OSError as error:
        return error.strerror or str(error)
    return None


def _read(folder: Path) -> str | None:
    try:
        return (folder / _DISK_MARK).read_text()
    except OSError:
        return None
