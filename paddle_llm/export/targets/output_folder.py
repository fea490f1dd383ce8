"""What OUT must be for an export to be written there: free, apart from what is read, on a disk with room."""

from __future__ import annotations

import shutil
from pathlib import Path

from paddle_llm.core.artifacts import EXPORT_RECORD
from paddle_llm.core.atomic_output import check_apart, check_replaceable
from paddle_llm.core.errors import UserError

_SPARE = 64 * 10**6  # for the tokenizer and whatever else is beside the weights


def check_out(out: Path, folder: Path, overwrite: bool) -> None:
    """Raise UserError where there is nothing to export or nothing may be written; before paddle is imported."""
    if not folder.expanduser().is_dir():
        raise UserError(
            f"{folder} is no folder: give a model folder, the output folder of a run, or a checkpoint of it"
        )
    check_apart(out, folder)
    check_replaceable(out, EXPORT_RECORD, "export", overwrite)


def check_outside(out: Path, *read: Path | None) -> None:
    """Raise UserError where OUT is or holds a folder that is read, or lies in one: a model's folder stays as it is."""
    check_apart(out, *read)
    for place in read:
        if place is not None and place.expanduser().resolve() in out.resolve().parents:
            raise UserError(f"{out} is inside {place}, which is read for it: name a folder outside")


def check_space(out: Path, needed: int) -> None:
    """Raise UserError where the disk has no room for `needed` bytes of weights, before anything is written."""
    parent = next(folder for folder in out.absolute().parents if folder.exists())
    free = shutil.disk_usage(parent).free
    if free < needed + _SPARE:
        raise UserError(
            f"{out}: the weights take {human(needed)}, what is beside them up to {human(_SPARE)}, and {parent} has "
            f"{human(free)} left: make room, or name a folder on another disk"
        )


def human(size: float) -> str:
    """1500000 -> 1.5 MB."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
