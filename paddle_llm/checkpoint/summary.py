"""What a checkpoint folder contains and whether it is valid, for people. Nothing is changed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paddle_llm.checkpoint.folder import list_checkpoints, read_manifest
from paddle_llm.checkpoint.format.manifest import has_this_format
from paddle_llm.checkpoint.format.verify import Level, verify
from paddle_llm.config.layout import Layout
from paddle_llm.core.artifacts import MANIFEST
from paddle_llm.core.errors import UserError


@dataclass(frozen=True)
class Summary:
    """A checkpoint folder.

    Attributes:
        folder: The folder.
        step: Step in its name or manifest; None if neither has one.
        nbytes: Bytes of the files that it has.
        layout: Layout of the job that saved it; None if the manifest cannot be read.
        sizes_only: Whether it is of version 0.2 or earlier, which recorded sizes of files but no digests.
        problem: Message that says what is wrong; None if it is valid.
    """

    folder: Path
    step: int | None
    nbytes: int
    layout: Layout | None
    sizes_only: bool
    problem: str | None


def summaries(output_dir: Path) -> list[Summary]:
    """Describe the checkpoints of a run by step. Digests of tensors are not compared."""
    return [summary_of(folder, "fast", step=step) for step, folder in list_checkpoints(output_dir)]


def summary_of(
    folder: Path, level: Level, *, step: int | None = None, advance: Callable[[int], None] | None = None
) -> Summary:
    """Describe and verify a checkpoint.

    Args:
        folder: Folder of the checkpoint.
        level: "fast" or "full", as in `format.verify.verify`; sizes alone in a checkpoint of version 0.2 or earlier.
        step: Step of the checkpoint; None: that of the manifest.
        advance: Function of the number of bytes whose digests were compared.
    """
    this_format, problem = has_this_format(folder), None
    try:
        if this_format:
            verify(folder, level, advance=advance)
        else:
            read_manifest(folder)
    except UserError as damage:
        problem = str(damage)
    except OSError as error:  # a job deletes it meanwhile
        problem = f"{folder} cannot be read: {error.strerror or error}. List the checkpoints again."
    content = _content(folder)
    if step is None and type(content.get("step")) is int:
        step = content["step"]
    nbytes = sum(map(_size, folder.rglob("*")))
    sizes_only = not this_format and (folder / MANIFEST).is_file()
    return Summary(folder, step, nbytes, _layout(content), sizes_only, problem)


def _size(path: Path) -> int:
    """Return the size of a file; 0 for a folder, and if the file was deleted meanwhile."""
    try:
        return path.stat().st_size if path.is_file() else 0
    except OSError:
        return 0


def _content(folder: Path) -> dict[str, Any]:
    """Return the manifest, also of a damaged checkpoint; empty if it cannot be read."""
    try:
        content = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _layout(content: dict[str, Any]) -> Layout | None:
    try:
        return Layout(**content["layout"])
    except (KeyError, TypeError):
        return None
