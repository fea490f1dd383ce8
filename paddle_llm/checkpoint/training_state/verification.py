"""Verify a checkpoint with all ranks of a job, each of which reads some of its files; choose the newest valid one."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import paddle.distributed as dist

from paddle_llm.checkpoint.folder import is_old
from paddle_llm.checkpoint.format.manifest import DamagedCheckpoint, read_manifest
from paddle_llm.checkpoint.format.verify import Level, verify
from paddle_llm.checkpoint.training_state.writers import gather_objects
from paddle_llm.core.artifacts import MANIFEST
from paddle_llm.parallel.process.first_rank import on_first_rank

T = TypeVar("T")


def choose_verified(
    choose: Callable[[Mapping[Path, str]], tuple[Path | None, T]], level: Level
) -> tuple[Path | None, T]:
    """Choose a checkpoint on the first rank and verify it on all, until a valid one is found. Collective over all ranks.

    Checkpoints of version 0.2 and earlier have no digests and are not read.

    Args:
        choose: Function of the checkpoints that were found to be damaged, with what is wrong with them, that returns the
            next checkpoint to try (None for no checkpoint) and what to return with it.
        level: "fast" or "full", as in `format.verify.verify`.
    """
    damaged: dict[Path, str] = {}
    while True:
        found, further = on_first_rank(lambda: choose(damaged))
        problem = None if found is None or is_old(found) else problem_on_any_rank(found, level)
        if found is None or problem is None:
            return found, further
        damaged[found] = problem


def problem_on_any_rank(folder: Path, level: Level) -> str | None:
    """Return what is wrong with a checkpoint, such as "index.json is missing"; None if it is valid. Collective.

    Each file with tensors is read by one rank of those that see the same disk.

    Args:
        folder: The checkpoint.
        level: "fast" or "full", as in `format.verify.verify`.
    """
    problems = gather_objects(_problem_of_share(folder, level))
    return next((problem for problem in problems if problem is not None), None)


def _problem_of_share(folder: Path, level: Level) -> str | None:
    seen = gather_objects(_digest(folder / MANIFEST))
    rank = dist.get_rank()
    sharing = [one for one, digest in enumerate(seen) if digest == seen[rank]]
    try:
        files = read_manifest(folder).files
        largest_first = sorted(files, key=lambda name: (-files[name].nbytes, name))
        verify(folder, level, files=largest_first[sharing.index(rank) :: len(sharing)])
    except DamagedCheckpoint as damage:
        return f"{damage.file} {damage.problem}"
    return None


def _digest(file: Path) -> str | None:
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError:
        return None
