"""The folder that a command writes: whether it may, and how it appears whole or not at all.

What is written stands under a name of its own until it is finished. What was at the place stays until then; what is
interrupted, fails or finds no room is removed, and what a killed process has left is removed by the next one. Two commands
that write to one place do not meet there: the second is refused while the first is at it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any
from uuid import uuid4

from paddle_llm.core.errors import UserError

MARK = ".being-written"  # in a folder that is being written: locked by whoever writes; unlocked, it may be removed
_FULL = (errno.ENOSPC, errno.EDQUOT)
_DISK = (
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.EIO,
    errno.EFBIG,
    errno.ESTALE,
    errno.ENAMETOOLONG,
    errno.ENOTDIR,
)


def check_replaceable(out: Path, sign: str, kind: str, overwrite: bool) -> None:
    """Raise UserError where something stands at OUT that may not be replaced.

    Args:
        sign: a file that whatever may be replaced has.
        kind: what that is, such as "export".
    """
    if not out.exists():
        return
    if not out.is_dir():
        raise UserError(f"{out} is a file: name a folder")
    if not any(out.iterdir()):
        return
    if not overwrite:
        raise UserError(f"{out} exists and is not empty: name another folder, or replace it with --overwrite")
    if not (out / sign).is_file():
        raise UserError(f"{out} is no {kind} (it has no {sign}), and is not replaced: remove it yourself")


def check_apart(out: Path, *read: Path | None) -> None:
    """Raise UserError where OUT is or holds something that is read for it."""
    for place in read:
        if place is None:
            continue
        place = place.expanduser().resolve()
        if out.resolve() == place or out.resolve() in place.parents:
            raise UserError(f"{out} is or holds {place}, which is read for it: name another folder")


def check_writable(file: Path, option: str) -> None:
    """Raise UserError where a file cannot be written: found out by trying it, since the rights alone do not tell."""
    parent = next(folder for folder in file.absolute().parents if folder.exists())
    try:
        with tempfile.TemporaryFile(dir=parent):
            return
    except OSError as error:
        raise UserError(f"{option} {file} cannot be written: {parent}: {error.strerror}. Name another file") from None


@contextmanager
def staged_folder(out: Path) -> Iterator[Path]:
    """A folder that becomes `out` when the body has ended well, and is removed when it has not.

    Raises:
        UserError: it cannot be made, another command writes to the same place, something has come to stand there
            meanwhile, the disk is full, or something else of the disk stands in the way.
    """
    absent = [folder for folder in out.absolute().parents if not folder.exists()]
    before = _identity(out)
    try:
        staged, lock = _claim(out)
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror or error}") from None
    try:
        with _ends_on_signals():
            yield staged
            _flush_all(staged)
            if _identity(out) != before:
                raise UserError(
                    f"{out} was not written: somebody else has written there meanwhile. Name another folder"
                )
            (staged / MARK).unlink()  # at the last moment: without it nobody takes the folder for a leftover
            _rename(staged, out)
    except BaseException as error:
        with _ignores_ctrl_c():  # a second one, of somebody in a hurry, would leave half of it
            shutil.rmtree(staged, ignore_errors=True)
            for folder in absent:
                with suppress(OSError):  # somebody has put something there
                    folder.rmdir()
        problem = disk_problem(error)
        if problem is not None:
            raise UserError(f"{out} was not written: {problem}") from None
        raise
    finally:
        os.close(lock)


def disk_problem(error: BaseException) -> str | None:
    """What to tell of an error that is the disk's or its rights', None for any other."""
    if not isinstance(error, OSError) or error.errno not in (*_FULL, *_DISK):
        return None
    where = f"{error.filename}: " if error.filename else ""
    if error.errno in _FULL:
        return f"{where}the disk is full ({error.strerror}): make room, or write to another one"
    return f"{where}{error.strerror}"


def _claim(out: Path) -> tuple[Path, int]:
    """The folder to write in first, and the lock on it. It has its name only when it is locked, so that nobody takes it
    for what a killed process has left."""
    made = out.with_name(f".{out.name}.new-{uuid4().hex}")
    made.mkdir(parents=True)
    lock = os.open(made / MARK, os.O_CREAT | os.O_RDWR)
    try:
        _is_locked(lock)
        return made.rename(_free_name(out)), lock
    except BaseException:
        os.close(lock)
        shutil.rmtree(made, ignore_errors=True)
        raise


def _free_name(out: Path) -> Path:
    """No folder's name but that of one which a killed process has left."""
    names = (f"{out.name}.saving{number or ''}" for number in count())
    for place in map(out.with_name, names):
        if (place / MARK).is_file():
            _remove_what_is_left(place, out)
        if not place.exists():
            return place
    raise AssertionError("numbers do not end")


def _remove_what_is_left(staged: Path, out: Path) -> None:
    """Raise UserError where somebody is still writing it."""
    lock = os.open(staged / MARK, os.O_RDWR)
    try:
        # The mark that was opened may have been removed since, and another command's stand at its place.
        if _is_locked(lock) or os.fstat(lock).st_ino != os.stat(staged / MARK).st_ino:
            raise UserError(f"{out} is being written by another command: wait for it, or name another folder")
        shutil.rmtree(staged)
    finally:
        os.close(lock)


def _is_locked(lock: int) -> bool:
    """Whether another process holds the lock; if not, this one has it from now on."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks
        return False
    return False


def _identity(out: Path) -> tuple[int, ...] | None:
    """Tells one folder from another at the same place, and from itself with other entries; None where nothing is."""
    try:
        found = out.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns


def publish(staged: Path, out: Path) -> None:
    """Give a finished folder its name when all of it is on the disk; what is there is removed only when the new one stands in
    its place."""
    _flush_all(staged)
    _rename(staged, out)


def _flush_all(folder: Path) -> None:
    for path in (*folder.rglob("*"), folder):
        if not path.is_symlink():
            _flush(path)


def _rename(staged: Path, out: Path) -> None:
    # A folder of its own: somebody's may have any other name.
    replaced = Path(tempfile.mkdtemp(prefix=f".{out.name}.replaced-", dir=out.parent)) / out.name
    if out.exists():
        os.replace(out, replaced)
    try:
        os.replace(staged, out)
        _flush(out.parent)
    except BaseException:
        if replaced.exists() and not out.exists():
            os.replace(replaced, out)
        raise
    finally:
        shutil.rmtree(replaced.parent, ignore_errors=True)


def _flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _ignores_ctrl_c() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _ends_on_signals() -> Iterator[None]:
    """SIGTERM (of a cluster's scheduler) ends the work as Ctrl-C does, so that nothing is left behind; unless somebody
    has other plans for it."""
    mine = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if not mine:
        yield
        return

    def end(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
