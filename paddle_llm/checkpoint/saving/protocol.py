"""Write a checkpoint from all ranks: complete or absent.

1. every disk gets an empty staging folder, with the files that libraries write (`stage`)
2. every rank writes its tensors and its random states, and flushes them
3. on each disk one rank writes the state of the job, the index, and the manifest last
4. the staging folder is renamed, and the oldest checkpoints are deleted

A rank that cannot write tells all others, which then stop, too: nobody waits for it. Ranks exchange JSON with a function
`gather`: a collective of the job, or of the processes that write beside the ranks (`background.py`).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from paddle_llm.checkpoint.folder import rotate
from paddle_llm.checkpoint.format.index import TensorEntry, merge
from paddle_llm.checkpoint.format.manifest import Manifest, seal, write_json
from paddle_llm.checkpoint.format.state import STATE
from paddle_llm.checkpoint.format.writer import LocalTensor, RankFile, write_rank_file
from paddle_llm.core.artifacts import CHECKPOINT_INDEX
from paddle_llm.core.atomic_output import publish
from paddle_llm.core.console import say
from paddle_llm.core.durable_files import FileRecord
from paddle_llm.core.errors import UserError

REMEDY = (
    "Free disk space or keep fewer checkpoints with --save_total_limit; the newest complete checkpoint is unchanged."
)
Gather = Callable[[Any], list[Any]]  # from the JSON of this rank to that of every rank, by rank; collective
T = TypeVar("T")


class SaveFailed(UserError):
    """A checkpoint could not be written; the one before it is unchanged."""


def random_file_name(rank: int) -> str:
    """Return the name of the file with the random states of a rank."""
    return f"random-{rank:05}.json"


@dataclass(frozen=True)
class Member:
    """A rank that takes part in a save.

    Attributes:
        rank: Number of the rank.
        disk: Number of its disk.
        first_on_disk: Whether it is the lowest rank on its disk.
        shares_disk: Whether all ranks see the same folder.
    """

    rank: int
    disk: int
    first_on_disk: bool
    shares_disk: bool


@dataclass(frozen=True)
class Content:
    """What a rank writes to a checkpoint beside tensors.

    Attributes:
        staged: Staging folder, which `stage` has created.
        final: Folder of the checkpoint.
        member: The rank.
        random: Random states of the rank, as JSON of `format.state.encode`.
        state: State of the job, likewise; the same on all ranks.
        manifest: Manifest without files.
        keep: Number of checkpoints to keep; None for all.
        best: Folder of the best checkpoint, which is kept; None if it is unknown.
    """

    staged: Path
    final: Path
    member: Member
    random: Any
    state: Any
    manifest: Manifest
    keep: int | None = None
    best: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return an object from which `from_json` of another process makes this one again."""
        return {**asdict(self), "staged": str(self.staged), "final": str(self.final)}

    @staticmethod
    def from_json(value: dict[str, Any]) -> Content:
        """Return the content that another process has sent."""
        paths = {name: Path(value[name]) for name in ("staged", "final")}
        return Content(
            **{**value, **paths, "member": Member(**value["member"]), "manifest": Manifest(**value["manifest"])}
        )


def stage(
    staged: Path, member: Member, gather: Gather, write_files: Callable[[Path], None], problem: str | None
) -> None:
    """Create an empty staging folder on each disk and write the files of other libraries to it. Collective over all ranks.

    Args:
        staged: Staging folder.
        member: This rank.
        gather: See the top of the module.
        write_files: Function that writes the configuration of the network and similar files to a folder.
        problem: Why this rank cannot take part in the save; None if it can.

    Raises:
        SaveFailed: If a rank cannot take part or a file cannot be written; on all ranks.
    """
    if problem is None and member.first_on_disk:
        problem = _attempt(lambda: _create(staged, write_files), staged)
    _raise_first(gather(problem), staged, member)


def save_checkpoint(content: Content, tensors: Mapping[str, LocalTensor], gather: Gather) -> int:
    """Write a checkpoint whose staging folder exists. Collective over all ranks.

    Args:
        content: What it contains beside tensors.
        tensors: Tensors that this rank writes, by key.
        gather: See the top of the module.

    Returns:
        Bytes of the files, on all disks together.

    Raises:
        SaveFailed: If a rank could not write; on all ranks.
    """
    staged, final, member = content.staged, content.final, content.member
    mine = _attempt(lambda: _write_rank(content, tensors), final)
    written = {"disk": member.disk, **({"problem": mine} if isinstance(mine, str) else mine)}
    everyone: list[dict[str, Any]] = gather(written)
    _raise_first([one.get("problem") for one in everyone], staged, member)
    finished: int | str = 0
    if member.first_on_disk:
        finished = _attempt(lambda: _finish(content, everyone), final)
    ends = gather(finished)
    _raise_first([one if isinstance(one, str) else None for one in ends], staged, member)
    if member.first_on_disk:
        _rotate(content)
    gather(None)  # no rank continues before the old checkpoints are deleted
    return sum(ends)


def create_folder(folder: Path) -> None:
    """Create an empty folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _create(staged: Path, write_files: Callable[[Path], None]) -> None:
    create_folder(staged)
    write_files(staged)


def _raise_first(problems: Iterable[str | None], staged: Path, member: Member) -> None:
    """Remove the staging folder and raise if a rank has a problem."""
    problem = next((one for one in problems if one is not None), None)
    if problem is not None:
        if member.first_on_disk:
            shutil.rmtree(staged, ignore_errors=True)
        raise SaveFailed(f"{problem} {REMEDY}")


def _write_rank(content: Content, tensors: Mapping[str, LocalTensor]) -> dict[str, Any]:
    """Write the files of this rank; return what the other ranks must know of them."""
    staged, rank = content.staged, content.member.rank
    file = write_rank_file(staged, rank, tensors).to_json() if tensors else None
    return {"file": file, "random": asdict(write_json(staged, random_file_name(rank), content.random))}


def _finish(content: Content, everyone: list[dict[str, Any]]) -> int:
    """Write the state of the job, the index and the manifest of this disk, and rename the folder; return its bytes."""
    staged, member = content.staged, content.member
    records = {STATE: write_json(staged, STATE, content.state)}
    for rank, one in enumerate(everyone):
        if one["disk"] == member.disk:
            records[random_file_name(rank)] = FileRecord(**one["random"])
    files = [(one["disk"], RankFile.from_json(one["file"])) for one in everyone if one["file"] is not None]
    records |= {file.name: file.record for disk, file in files if disk == member.disk}
    here_first = sorted(files, key=lambda one: one[0] != member.disk)
    tensors = [file.tensors for _, file in here_first]
    index = merge(tensors if member.shares_disk else _without_copies(tensors))
    records[CHECKPOINT_INDEX] = write_json(staged, CHECKPOINT_INDEX, index.to_json())
    elsewhere = sorted({file.name for disk, file in files if disk != member.disk} & index.by_file().keys())
    complete = seal(staged, replace(content.manifest, elsewhere=elsewhere), records)
    publish(staged, content.final)
    return complete.nbytes


def _rotate(content: Content) -> None:
    try:
        rotate(content.final.parent, content.keep, content.best)
    except OSError as error:
        say(
            f"An old checkpoint cannot be deleted: {error}. {content.final} is complete. Delete old checkpoints yourself."
        )


def _without_copies(files: Iterable[Mapping[str, TensorEntry]]) -> list[dict[str, TensorEntry]]:
    """Return the tensors of files without parts that an earlier file has, too: each disk has a copy."""
    seen: set[tuple[str, Any]] = set()
    found = []
    for tensors in files:
        found.append({key: entry for key, entry in tensors.items() if (key, entry.parts[0].ranges) not in seen})
        seen |= {(key, entry.parts[0].ranges) for key, entry in tensors.items()}
    return found


def _attempt(write: Callable[[], T], final: Path) -> T | str:
    """Run a function; return a message if the disk does not accept what it writes."""
    try:
        return write()
    except OSError as error:
        return f"{final} cannot be written: {error.strerror or error}."
