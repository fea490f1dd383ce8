"""Checks the output folder of an export: it may be written, is apart from the source, and its disk has enough space."""

from __future__ import annotations

import shutil
from pathlib import Path

from paddle_llm.core.artifacts import EXPORT_RECORD
from paddle_llm.core.atomic_output import check_apart, check_replaceable
from paddle_llm.core.errors import UserError

_SPARE = 64 * 10**6  # bytes for the tokenizer and the other files beside the weights


def check_out(out: Path, folder: Path, overwrite: bool) -> None:
    """Check source and output before Paddle is imported.

    Raises:
        UserError: If `folder` does not exist, or `out` may not be written.
    """
    if not folder.expanduser().is_dir():
        raise UserError(
            f"{folder} is not a folder. Give a model folder, the output folder of a run, or one of its checkpoints."
        )
    check_apart(out, folder)
    check_replaceable(out, EXPORT_RECORD, "export", overwrite)


def check_outside(out: Path, *sources: Path | None) -> None:
    """Check that the output is apart from every folder that is read, so that those stay unchanged.

    Raises:
        UserError: If `out` is, contains or lies inside one of the source folders.
    """
    check_apart(out, *sources)
    for source in sources:
        if source is not None and source.expanduser().resolve() in out.resolve().parents:
            raise UserError(f"{out} is inside {source}, which the export reads. Choose a folder outside of it.")


def check_space(out: Path, size: int) -> None:
    """Check the free space of the disk before anything is written.

    Raises:
        UserError: If the disk has no space for `size` bytes of weights and the other files.
    """
    parent = next(folder for folder in out.absolute().parents if folder.exists())
    free = shutil.disk_usage(parent).free
    if free < size + _SPARE:
        raise UserError(
            f"{out}: the weights need {human(size)} and the other files up to {human(_SPARE)}, but {parent} has only "
            f"{human(free)} free. Free some space, or choose a folder on another disk."
        )


def human(size: float) -> str:
    """Format a number of bytes: 1500000 -> 1.5 MB."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
