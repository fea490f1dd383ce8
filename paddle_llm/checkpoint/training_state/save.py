"""Write a checkpoint from all ranks: complete or absent.

1. every disk gets an empty staging folder
2. every rank writes its tensors and its random states, and flushes them
3. on each disk one rank writes the files of the job, the index, and the manifest last
4. the staging folder is renamed

A rank that cannot write tells all others, which then stop, too: nobody waits for it in a collective.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from paddle_llm.checkpoint.format.index import TensorEntry, merge
from paddle_llm.checkpoint.format.manifest import Manifest, seal, write_json
from paddle_llm.checkpoint.format.state import STATE, encode
from paddle_llm.checkpoint.format.writer import LocalTensor, RankFile, write_rank_file
from paddle_llm.checkpoint.training_state.writers import SaveFailed, Writers, create_folder, gather_objects
from paddle_llm.core.artifacts import CHECKPOINT_INDEX
from paddle_llm.core.atomic_output import publish
from paddle_llm.core.durable_files import FileRecord

REMEDY = (
    "Free disk space or keep fewer checkpoints with --save_total_limit; the newest complete checkpoint is unchanged."
)
T = TypeVar("T")


def random_file_name(rank: int) -> str:
    """Return the name of the file with the random states of a rank."""
    return f"random-{rank:05}.json"


@dataclass(frozen=True)
class Content:
    """What a checkpoint contains beside tensors.

    Attributes:
        random: Random states of this rank, as `format.state.encode` takes them.
        state: State of the job, likewise but without arrays; the same on all ranks.
        manifest: Manifest without files.
        write_further_files: Function that writes the configuration of the network and similar files to a folder.
    """

    random: Mapping[str, Any]
    state: Mapping[str, Any]
    manifest: Manifest
    write_further_files: Callable[[Path], None]


@dataclass(frozen=True)
class _Written:
    """What a rank has written, as JSON, or why it could not."""

    disk: int
    file: dict[str, Any] | None = None
    random: FileRecord | None = None
    problem: str | None = None


def save_checkpoint(
    staged: Path, final: Path, writers: Writers, tensors: Iterable[tuple[str, LocalTensor]], content: Content
) -> Manifest | None:
    """Write a checkpoint. Collective over all ranks.

    Args:
        staged: Staging folder, which `find_writers` or `stage` has created.
        final: Folder of the checkpoint.
        writers: Assignment of tensors to ranks.
        tensors: Tensors that this rank writes.
        content: What else it contains.

    Returns:
        The manifest with all files on the first rank of each disk; None on other ranks.

    Raises:
        SaveFailed: If a rank could not write; on all ranks.
    """
    mine = _attempt(lambda: _write_rank(staged, writers, dict(tensors), content.random), final)
    everyone = gather_objects(mine if isinstance(mine, _Written) else _Written(writers.disk, problem=mine))
    problem = next((one.problem for one in everyone if one.problem is not None), None)
    finished: Manifest | str | None = None
    if problem is None and writers.first_on_disk:
        finished = _attempt(lambda: _finish(staged, final, writers, everyone, content), final)
    if problem is None:
        problems = gather_objects(finished if isinstance(finished, str) else None)
        problem = next((one for one in problems if one is not None), None)
    if problem is not None:
        if writers.first_on_disk:
            shutil.rmtree(staged, ignore_errors=True)
        raise SaveFailed(f"{problem} {REMEDY}")
    return finished if isinstance(finished, Manifest) else None


def stage(staged: Path, writers: Writers) -> None:
    """Create an empty staging folder on each disk. Collective over all ranks.

    Raises:
        SaveFailed: If a folder cannot be created; on all ranks.
    """
    made = _attempt(lambda: create_folder(staged), staged) if writers.first_on_disk else None
    problem = next((one for one in gather_objects(made) if one is not None), None)
    if problem is not None:
        raise SaveFailed(f"{problem} {REMEDY}")


def _write_rank(
    staged: Path, writers: Writers, tensors: Mapping[str, LocalTensor], random: Mapping[str, Any]
) -> _Written:
    content, arrays = encode(random, f"state/random/{writers.rank:05}")
    own = {**tensors, **{key: LocalTensor.of(values) for key, values in arrays.items()}}
    file = write_rank_file(staged, writers.rank, own).to_json() if own else None
    record = write_json(staged, random_file_name(writers.rank), content)
    return _Written(writers.disk, file, record)


def _finish(staged: Path, final: Path, writers: Writers, everyone: list[_Written], content: Content) -> Manifest:
    """Write the files of the job, the index and the manifest of this disk, and rename the folder."""
    content.write_further_files(staged)
    state, arrays = encode(content.state, "state/job")
    if arrays:
        raise TypeError(f"the state of the job has arrays: {', '.join(arrays)}")
    records = {STATE: write_json(staged, STATE, state)}
    for rank, one in enumerate(everyone):
        if one.disk == writers.disk and one.random is not None:
            records[random_file_name(rank)] = one.random
    files = [(one.disk, RankFile.from_json(one.file)) for one in everyone if one.file is not None]
    records |= {file.name: file.record for disk, file in files if disk == writers.disk}
    here_first = sorted(files, key=lambda one: one[0] != writers.disk)
    tensors = [file.tensors for _, file in here_first]
    index = merge(tensors if writers.shares_disk else _without_copies(tensors))
    records[CHECKPOINT_INDEX] = write_json(staged, CHECKPOINT_INDEX, index.to_json())
    elsewhere = sorted({file.name for disk, file in files if disk != writers.disk} & index.by_file().keys())
    complete = seal(staged, replace(content.manifest, elsewhere=elsewhere), records)
    publish(staged, final)
    return complete


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
