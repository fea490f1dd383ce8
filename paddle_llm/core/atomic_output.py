"""Files and folders that are written completely or not at all.

Every output is written under a temporary name beside its final one, flushed to disk and renamed. Until then the previous
output is kept. An interrupted or failed write removes its temporary output; that of a killed process is removed by the next
writer. Two commands cannot write the same folder at once: a lock makes the second one fail.

Outputs get the permissions that the umask of the process allows, also where a library created a file with mode 0600.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from uuid import uuid4

from paddle_llm.core.durable_files import flush, rename_durably, write_durably
from paddle_llm.core.errors import UserError
from paddle_llm.core.signals import ignored_ctrl_c, interrupt_on_sigterm

MARK = ".being-written"  # in a folder that is being written, locked by its writer; a folder with an unlocked mark is a leftover
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_NOT_WRITABLE = (
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.EIO,
    errno.EFBIG,
    errno.ESTALE,
    errno.ENAMETOOLONG,
    errno.ENOTDIR,
)


# ---- checks before writing -------------------------------------------------------------------------------------------


def check_replaceable(out: Path, marker_file: str, kind: str, overwrite: bool) -> None:
    """Check that a command may write the folder `out`.

    Args:
        out: Folder to write.
        marker_file: Name of a file that every replaceable folder contains.
        kind: Noun for such a folder in messages, such as "export".
        overwrite: Whether the user allowed replacing a folder that contains `marker_file`.

    Raises:
        UserError: If `out` is a file or a non-empty folder that may not be replaced.
    """
    if not out.exists():
        return
    if not out.is_dir():
        raise UserError(f"{out} is a file. Choose a folder.")
    if not any(out.iterdir()):
        return
    if not overwrite:
        raise UserError(
            f"{out} already exists and is not empty. Choose another folder, or replace it with --overwrite."
        )
    if not (out / marker_file).is_file():
        raise UserError(
            f"{out} is not an {kind} (it has no {marker_file}), so it is not replaced. Remove it yourself, or choose another folder."
        )


def check_apart(out: Path, *inputs: Path | None) -> None:
    """Check that no input of a command lies in its output folder.

    Raises:
        UserError: If `out` is an input or contains one.
    """
    for source in inputs:
        if source is None:
            continue
        source = source.expanduser().resolve()
        if out.resolve() == source or out.resolve() in source.parents:
            raise UserError(f"{out} is or contains the input {source}. Choose another folder.")


def check_writable(file: Path, option: str) -> None:
    """Check that a file can be created, by creating a temporary one. Permission bits alone are not sufficient.

    Args:
        file: Path of the file; its folder need not exist yet.
        option: Option that the path was given with, for the message.

    Raises:
        UserError: If the nearest existing folder cannot be written.
    """
    parent = next(folder for folder in file.absolute().parents if folder.exists())
    try:
        with tempfile.TemporaryFile(dir=parent):
            return
    except OSError as error:
        raise UserError(
            f"{option} {file} cannot be written: {parent}: {error.strerror}. Choose another file."
        ) from None


# ---- files -----------------------------------------------------------------------------------------------------------


def write_atomically(path: Path, content: bytes | memoryview, hint: str = "") -> None:
    """Write a file completely or not at all, and create its folder.

    Args:
        path: File to write; an existing one is replaced.
        content: Bytes of the file.
        hint: Sentence that ends the error message, with a remedy.

    Raises:
        UserError: If the file cannot be written.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_durably(temporary, [content])
        rename_durably(temporary, path)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}. {hint}".rstrip()) from error
    finally:
        with suppress(OSError):  # it does not exist after a success, or when its folder could not be created
            temporary.unlink()


def allow_readers(path: Path) -> None:
    """Add the read and write permissions that the umask allows to a file. Other permissions are kept."""
    mode = stat.S_IMODE(path.stat().st_mode)
    wanted = mode | (0o666 & ~_umask())
    if wanted != mode:
        path.chmod(wanted)


def _umask() -> int:
    """Return the umask of this process. `os.umask` reads it only by changing it, which affects other threads."""
    with suppress(OSError), open("/proc/self/status") as status:
        for line in status:
            if line.startswith("Umask:"):
                return int(line.split()[1], 8)
    umask = os.umask(0o077)
    os.umask(umask)
    return umask


# ---- folders ---------------------------------------------------------------------------------------------------------


@contextmanager
def staged_folder(out: Path) -> Iterator[Path]:
    """Yield a folder that becomes `out` if the body succeeds and is removed if it does not.

    Raises:
        UserError: If the folder cannot be created, another command is writing `out`, `out` has changed meanwhile, the disk
            is full, or the file system refuses a write.
    """
    absent = [folder for folder in out.absolute().parents if not folder.exists()]
    before = _identity(out)
    try:
        staged, lock = _claim(out)
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror or error}. Choose another folder.") from None
    try:
        with interrupt_on_sigterm():
            yield staged
            _finish_files(staged)
            if _identity(out) != before:
                raise UserError(
                    f"{out} was not written: another process has written it meanwhile. Choose another folder."
                )
            (staged / MARK).unlink()  # at the last moment: a folder with this mark is never mistaken for a finished one
            _publish(staged, out)
    except BaseException as error:
        with ignored_ctrl_c():  # a second Ctrl-C would leave half of the folder
            shutil.rmtree(staged, ignore_errors=True)
            for folder in absent:
                with suppress(OSError):  # another process has put something into it
                    folder.rmdir()
        problem = disk_problem(error)
        if problem is not None:
            raise UserError(f"{out} was not written: {problem}") from None
        raise
    finally:
        os.close(lock)


def publish(staged: Path, out: Path) -> None:
    """Flush a finished folder to disk and rename it to `out`. A previous `out` is removed only after that."""
    _finish_files(staged)
    _publish(staged, out)


def disk_problem(error: BaseException) -> str | None:
    """Describe an error of the disk or of permissions.

    Returns:
        Message for the user; None for every other error.
    """
    if not isinstance(error, OSError) or error.errno not in (*_DISK_FULL, *_NOT_WRITABLE):
        return None
    where = f"{error.filename}: " if error.filename else ""
    if error.errno in _DISK_FULL:
        return f"{where}the disk is full ({error.strerror}). Free some space, or write to another disk."
    return f"{where}{error.strerror}. Check the path and its permissions."


def _claim(out: Path) -> tuple[Path, int]:
    """Create and lock the temporary folder of `out`.

    It gets its recognisable name only after it is locked, so that no other writer takes it for a leftover.

    Returns:
        Folder and file descriptor of the lock.
    """
    unlocked = out.with_name(f".{out.name}.new-{uuid4().hex}")
    unlocked.mkdir(parents=True)
    lock = os.open(unlocked / MARK, os.O_CREAT | os.O_RDWR)
    try:
        _is_locked(lock)
        return unlocked.rename(_free_name(out)), lock
    except BaseException:
        os.close(lock)
        shutil.rmtree(unlocked, ignore_errors=True)
        raise


def _free_name(out: Path) -> Path:
    """Return a name that no folder has, after removing leftovers of killed processes."""
    names = (f"{out.name}.saving{number or ''}" for number in count())
    for candidate in map(out.with_name, names):
        if (candidate / MARK).is_file():
            _remove_leftover(candidate, out)
        if not candidate.exists():
            return candidate
    raise AssertionError("unreachable: count() is infinite")


def _remove_leftover(staged: Path, out: Path) -> None:
    """Remove the temporary folder of a killed process.

    Raises:
        UserError: If its writer is still running.
    """
    lock = os.open(staged / MARK, os.O_RDWR)
    try:
        # Another command may have replaced the mark after it was opened.
        if _is_locked(lock) or os.fstat(lock).st_ino != os.stat(staged / MARK).st_ino:
            raise UserError(f"{out} is being written by another command. Wait for it, or choose another folder.")
        shutil.rmtree(staged)
    finally:
        os.close(lock)


def _is_locked(lock: int) -> bool:
    """Return whether another process holds the lock; if none does, this process takes it."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks
        return False
    return False


def _identity(out: Path) -> tuple[int, ...] | None:
    """Return a key that changes if a folder is replaced or its entries change; None if it does not exist."""
    try:
        found = out.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns


def _finish_files(folder: Path) -> None:
    """Set the permissions of all files of a folder and flush everything to disk."""
    for path in (*folder.rglob("*"), folder):
        if path.is_symlink():
            continue
        if path.is_file():
            with suppress(PermissionError):  # written by a rank that runs as another user
                allow_readers(path)
        flush(path)


def _publish(staged: Path, out: Path) -> None:
    if not out.exists():
        rename_durably(staged, out)
        return
    # The previous folder moves into a new one: any fixed name may already be in use.
    replaced = Path(tempfile.mkdtemp(prefix=f".{out.name}.replaced-", dir=out.parent)) / out.name
    rename_durably(out, replaced)
    try:
        rename_durably(staged, out)
    except BaseException:
        if not out.exists():
            os.replace(replaced, out)
        raise
    finally:
        shutil.rmtree(replaced.parent, ignore_errors=True)
