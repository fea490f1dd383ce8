"""The lock of an output folder: two jobs never write to one folder.

The first rank of a job keeps the file `.run.lock` in its output folder, which names host and process, and renews its
time every 30 s. A lock is stale if its process has ended or, seen from another host or container, if it has not been
renewed for five minutes. A stale lock is replaced.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

from paddle_llm.core.console import say
from paddle_llm.core.errors import EXIT_RESUME, UserError
from paddle_llm.parallel.process.parent import process_start

RUN_LOCK = ".run.lock"
WAIT_VARIABLE = "PADDLE_LLM_LOCK_WAIT"  # seconds to wait for another job's lock; launch scripts set it for restarts
STALE_SECONDS = 300.0
_RENEW_SECONDS = 30.0
_RETRY_SECONDS = 1.0

_held: OutputLock | None = None


def hold_output_folder(output_dir: str | Path) -> bool:
    """Lock the output folder for this process until `release_output_folder`. Called by the first rank.

    Returns:
        Whether this call has locked it: False if this process holds the lock already.

    Raises:
        UserError: If another job holds the lock, also after the seconds in `PADDLE_LLM_LOCK_WAIT`.
        OSError: If the folder cannot be written.
    """
    global _held
    if _held is not None and _held.folder == Path(output_dir).resolve():
        return False
    release_output_folder()
    _held = OutputLock(Path(output_dir).resolve(), _seconds_to_wait())
    atexit.register(release_output_folder)
    return True


def release_output_folder() -> None:
    """Remove the lock that this process holds, and the folder if it was created for the lock and is empty."""
    global _held
    if _held is not None:
        _held.release()
        _held = None


class OutputLock:
    """A lock that this process holds.

    Args:
        folder: Output folder; created if it does not exist.
        seconds_to_wait: Seconds to wait for another job to release its lock.
    """

    def __init__(self, folder: Path, seconds_to_wait: float):
        self.folder, self.path = folder, folder / RUN_LOCK
        self._created = [path for path in (folder, *folder.parents) if not path.exists()]
        self._content = json.dumps({**_identity(), "id": uuid4().hex})
        self._released, self._pid = threading.Event(), os.getpid()
        folder.mkdir(parents=True, exist_ok=True)
        try:
            self._acquire(time.monotonic() + seconds_to_wait, seconds_to_wait)
        except BaseException:
            self._remove_created()
            raise
        threading.Thread(target=self._renew, name="output lock", daemon=True).start()

    def _acquire(self, deadline: float, seconds_to_wait: float) -> None:
        waiting = False
        while not _create(self.path, self._content):
            found = _read(self.path)
            if found is None:  # removed since
                continue
            reason = _why_stale(self.path, found)
            if reason is not None:
                if _remove_stale(self.path, found):
                    say(f"{self.path} is stale ({reason}) and was removed.")
                continue
            if time.monotonic() >= deadline:
                raise UserError(
                    f"--output_dir {self.folder} is in use by another job: {_holder_of(found)}. Stop that job, wait for its "
                    "end, or choose another folder."
                )
            if not waiting:
                say(
                    f"--output_dir {self.folder} is in use by another job: {_holder_of(found)}. Waiting up to {seconds_to_wait:.0f} s."
                )
                waiting = True
            time.sleep(_RETRY_SECONDS)

    def release(self) -> None:
        """Remove the lock, and the folders that were created for it if they are empty."""
        self._released.set()
        if os.getpid() != self._pid:  # a forked process
            return
        if _read(self.path) == self._content:
            self.path.unlink(missing_ok=True)
        self._remove_created()

    def _remove_created(self) -> None:
        for folder in self._created:
            with contextlib.suppress(OSError):  # not empty
                folder.rmdir()

    def _renew(self) -> None:
        while not self._released.wait(_RENEW_SECONDS):
            with contextlib.suppress(OSError):
                self._renew_once()

    def _renew_once(self) -> None:
        found = _read(self.path)
        if found == self._content:
            os.utime(self.path)
        elif found is None:  # removed by hand
            _create(self.path, self._content)
        else:  # this process was suspended for so long that another job took the folder
            print(
                f"--output_dir {self.folder} was taken over by another job: {_holder_of(found)}. This job stops.",
                file=sys.stderr,
                flush=True,
            )
            os._exit(EXIT_RESUME)


def _seconds_to_wait() -> float:
    text = os.environ.get(WAIT_VARIABLE) or "0"
    try:
        return float(text)
    except ValueError:
        raise UserError(f"{WAIT_VARIABLE} is not a number of seconds: {text}. Use 120, for example.") from None


def _identity() -> dict[str, Any]:
    """Return what identifies this process. A process id is unique only within one boot and one PID namespace."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": process_start(os.getpid()),
        "boot": boot.read_text().strip() if boot.exists() else "",
        "namespace": os.readlink("/proc/self/ns/pid") if Path("/proc/self/ns/pid").is_symlink() else "",
    }


def _create(path: Path, content: str) -> bool:
    """Create the lock with its whole content at once, by a hard link; return False if it exists."""
    draft = path.with_name(f"{RUN_LOCK}.{uuid4().hex}")
    try:
        draft.write_text(content)
        os.link(draft, path)
        return True
    except FileExistsError:
        return False
    except OSError:  # a file system without hard links
        return _create_without_link(path, content)
    finally:
        draft.unlink(missing_ok=True)


def _create_without_link(path: Path, content: str) -> bool:
    try:
        with path.open("x") as file:
            file.write(content)
    except FileExistsError:
        return False
    return True


def _read(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace")
    except FileNotFoundError:
        return None


def _fields(content: str) -> dict[str, Any]:
    """Return the fields of a lock; {} if it is damaged, so that its age decides whether it is stale."""
    try:
        found = json.loads(content)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _holder_of(content: str) -> str:
    found = _fields(content)
    return f"process {found.get('pid', 'unknown')} on host {found.get('host', 'unknown')}"


def _why_stale(path: Path, content: str) -> str | None:
    """Return why a lock with this content is stale; None if it is in use."""
    found, here = _fields(content), _identity()
    if all(found.get(key) == here[key] for key in ("host", "boot", "namespace")):
        return None if _is_alive(found) else f"{_holder_of(content)} has ended"
    age = _age(path)
    return f"{_holder_of(content)} has not renewed it for {age:.0f} s" if age > STALE_SECONDS else None


def _is_alive(found: dict[str, Any]) -> bool:
    started = process_start(found["pid"])
    if started is not None:
        return started == found["started"]
    if Path(f"/proc/{found['pid']}").exists():  # a zombie
        return False
    try:
        os.kill(found["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's, hidden in /proc
        return True
    return True


def _age(path: Path) -> float:
    """Return the seconds since the lock was renewed, by the clock of the file system."""
    probe = path.with_name(f"{RUN_LOCK}.{uuid4().hex}")
    try:
        probe.touch()
        return probe.stat().st_mtime - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
    finally:
        probe.unlink(missing_ok=True)


def _remove_stale(path: Path, content: str) -> bool:
    """Remove a lock if its content is still this one: another job may have replaced it meanwhile.

    Returns:
        Whether this process removed it.
    """
    removed = path.with_name(f"{RUN_LOCK}.{uuid4().hex}")
    try:
        os.rename(path, removed)
    except FileNotFoundError:
        return False
    if removed.read_text(errors="replace") != content:
        with contextlib.suppress(FileExistsError):
            os.link(removed, path)
        content = ""
    removed.unlink()
    return bool(content)
