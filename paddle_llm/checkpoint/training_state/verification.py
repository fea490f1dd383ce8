"""Verify a checkpoint with all ranks of a job: each reads some of its files."""

from __future__ import annotations

import hashlib
from pathlib import Path

import paddle.distributed as dist

from paddle_llm.checkpoint.format.manifest import DamagedCheckpoint, read_manifest
from paddle_llm.checkpoint.format.verify import Level, verify
from paddle_llm.checkpoint.training_state.writers import gather_objects
from paddle_llm.core.artifacts import MANIFEST


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
