"""The folder that an export is written to: named when it is whole, removed when it is not; what is there stays until then."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from paddle_llm.checkpoint.folder import publish
from paddle_llm.config.errors import UserError

RECORD = "export.json"  # what was exported from where, and what was compared; the sign of an export of ours
_MARK = ".export-under-way"  # in a folder that is being written, and may be removed
_SPARE = 64 * 10**6  # for the tokenizer and whatever else is beside the weights


def check_out(out: Path, folder: Path, overwrite: bool) -> None:
    """Raise UserError where there is nothing to export or nothing may be written; before paddle is imported."""
    if not folder.expanduser().is_dir():
        raise UserError(
            f"{folder} is no folder: give a model folder, the output folder of a run, or a checkpoint of it"
        )
    check_apart(out, folder)
    if not out.exists():
        return
    if not out.is_dir():
        raise UserError(f"OUT {out} is a file: name a folder")
    if not any(out.iterdir()):
        return
    if not overwrite:
        raise UserError(f"OUT {out} is there and not empty: name another folder, or replace it with --overwrite")
    if not (out / RECORD).is_file():
        raise UserError(f"OUT {out} is no export (it has no {RECORD}), and is not replaced: remove it yourself")


def check_apart(out: Path, *read: Path | None) -> None:
    """Raise UserError where OUT is or holds something that the export reads."""
    for place in read:
        if place is None:
            continue
        place = place.expanduser().resolve()
        if out.resolve() == place or out.resolve() in place.parents:
            raise UserError(f"OUT {out} is or holds {place}, which is read for the export: name another folder")


def check_space(out: Path, needed: int) -> None:
    """Raise UserError where the disk has no room for `needed` bytes of weights, before anything is written."""
    parent = next(folder for folder in out.absolute().parents if folder.exists())
    free = shutil.disk_usage(parent).free
    if free < needed + _SPARE:
        raise UserError(
            f"OUT {out}: the weights take {human(needed)}, what is beside them up to {human(_SPARE)}, and {parent} has "
            f"{human(free)} left: make room, or name a folder on another disk"
        )


def human(size: float) -> str:
    """1500000 -> 1.5 MB."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


@contextmanager
def staged_folder(out: Path) -> Iterator[Path]:
    """A folder that becomes `out` when the body has ended well, and is removed when it has not."""
    staged = out.with_name(out.name + ".saving")
    if staged.exists() and not (staged / _MARK).is_file():
        raise UserError(f"{staged} is in the way: an export is written there first, and this one is none; move it")
    try:
        shutil.rmtree(staged, ignore_errors=True)
        staged.mkdir(parents=True)
        (staged / _MARK).touch()
    except OSError as error:
        raise UserError(f"OUT {out} cannot be written: {error.strerror or error}") from None
    try:
        with _ends_on_signals():
            yield staged
            (staged / _MARK).unlink()
            _publish(staged, out)
    except BaseException as error:
        shutil.rmtree(staged, ignore_errors=True)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"OUT {out}: the disk is full ({error.strerror}). What was written has been removed; make room, or name a "
                "folder on another disk"
            ) from None
        raise


def _publish(staged: Path, out: Path) -> None:
    """Give the folder its name; what is there is removed only when the new one stands in its place."""
    # A folder of its own: somebody's may have any other name.
    replaced = Path(tempfile.mkdtemp(prefix=f".{out.name}.replaced-", dir=out.parent)) / out.name
    if out.exists():
        os.replace(out, replaced)
    try:
        publish(staged, out)
    except BaseException:
        if replaced.exists() and not out.exists():
            os.replace(replaced, out)
        raise
    finally:
        shutil.rmtree(replaced.parent, ignore_errors=True)


@contextmanager
def _ends_on_signals() -> Iterator[None]:
    """SIGTERM (of a cluster's scheduler) ends the work as Ctrl-C does, so that nothing is left behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
