"""End this process when the process that it works for has ended, also by SIGKILL.

A SIGKILL cannot be passed on. A rank whose launcher was killed would keep training beside the job that is started in
its place, and a dataloader worker whose rank was killed would wait forever. Each of them watches its parent in a
thread.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from paddle_llm.core.errors import EXIT_RESUME, UserError, is_first_rank
from paddle_llm.parallel.process.scheduler import rank_variable

# paddle.distributed.launch (3.3.1) sets this variable for each rank that it starts. In its own environment the variable
# has another value or is not set.
LAUNCHER_VARIABLE = "PADDLE_BACKUP_ENV_PATH"
_SESSION_MANAGERS = ("systemd", "init", "tini", "dumb-init", "docker-init", "catatonit", "containerd-shim")
_POLL_SECONDS = 0.5
_SECONDS_TO_REPORT = 20.0
_watching = False


def end_with_launcher() -> None:
    """Watch the launcher that started this rank, and exit with code 75 when it ends. No effect without a launcher."""
    global _watching
    launcher = find_launcher()
    if launcher is None or _watching:
        return
    _watching = True
    watch = partial(_end_after, launcher, process_start(launcher))
    threading.Thread(target=watch, name="launcher watch", daemon=True).start()


@contextlib.contextmanager
def first_rank_reports() -> Iterator[None]:
    """Delay a UserError on other ranks than the first, until the launcher ends them.

    For an error that all ranks raise. The launcher ends all ranks as soon as one has exited, but the first rank, which
    prints the error, may be slower than the others.
    """
    try:
        yield
    except UserError:
        if not is_first_rank() and find_launcher() is not None:
            time.sleep(_SECONDS_TO_REPORT)
        raise


def find_launcher() -> int | None:
    """Return the process id of the launcher (Paddle's, `mpirun` or the step daemon of `srun`) that started this rank.

    It is the nearest ancestor that does not have this rank's variable of that launcher: a shell script between the two
    passes the variable on.

    Returns:
        Process id, -1 if the launcher has ended already, or None for a process that no launcher started.
    """
    variable = LAUNCHER_VARIABLE if LAUNCHER_VARIABLE in os.environ else rank_variable(os.environ)
    if variable is None:
        return None
    mark = f"{variable}={os.environ[variable]}".encode()
    pid = os.getppid()
    while pid > 0 and mark in _proc(pid, "environ").split(b"\0"):
        pid = _parent_of(pid)
    if pid <= 0:  # outside of this process's container
        return None
    return -1 if _adopts_orphans(pid) else pid


def process_start(pid: int) -> str | None:
    """Return the start time of a process in clock ticks since boot; None if it has ended (also if it is a zombie)."""
    state, *fields = _proc(pid, "stat").rpartition(b")")[2].split() or [b"X"]
    return None if state in (b"Z", b"X") else fields[18].decode()


def ranks_of(launcher: int) -> list[int]:
    """Return the process ids of the ranks that a launcher has started; [] if it has not started one yet."""
    mark = f"{LAUNCHER_VARIABLE}=".encode()
    processes = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
    children = [pid for pid in processes if _parent_of(pid) == launcher]
    return [pid for pid in children if any(one.startswith(mark) for one in _proc(pid, "environ").split(b"\0"))]


def end_with_creator() -> None:
    """Exit when the process that created this process of `multiprocessing` ends."""
    creator = multiprocessing.parent_process()
    if creator is None:
        return

    def watch() -> None:
        multiprocessing.connection.wait([creator.sentinel])
        os._exit(1)

    threading.Thread(target=watch, name="creator watch", daemon=True).start()


def worker_initializer() -> Callable[[int], None]:
    """Return a `worker_init_fn` for Paddle's DataLoader that lets a worker exit when this process ends, and not before.

    A worker leaves the process group of its rank. Otherwise a Ctrl-C in a terminal, and the SIGTERM that Paddle's
    launcher sends to the group, would end it before the rank has completed its step and saved its state.

    Paddle 3.3.1: the worker passes the timeout of `queue.get` as its argument `block`, so it never checks its parent.
    The pipes of `multiprocessing` stay open, too, because workers that are forked later inherit them.
    """
    return partial(_watch_forking_process, os.getpid())


def _watch_forking_process(parent: int, worker: int) -> None:
    os.setpgid(0, 0)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_POLL_SECONDS)
        from paddle.base import core

        core._cleanup_mmap_fds()  # type: ignore[attr-defined]  # batches in shared memory that no process will read
        os._exit(1)

    threading.Thread(target=watch, name="rank watch", daemon=True).start()


def _end_after(launcher: int, started: str | None) -> None:
    while started is not None and process_start(launcher) == started:
        time.sleep(_POLL_SECONDS)
    rank = os.environ.get("PADDLE_TRAINER_ID", "0")
    with contextlib.suppress(OSError):
        print(f"rank {rank}: the launcher has ended; this rank stops", file=sys.stderr, flush=True)
    os._exit(EXIT_RESUME)


def _adopts_orphans(pid: int) -> bool:
    """Return whether a process is init or a session manager; the first process of a container may be a launcher."""
    if pid != 1 and _proc(pid, "comm").strip().decode(errors="replace") not in _SESSION_MANAGERS:
        return False
    return b"python" not in _proc(pid, "cmdline").split(b"\0")[0]


def _parent_of(pid: int) -> int:
    fields = _proc(pid, "stat").rpartition(b")")[2].split()
    return int(fields[1]) if fields else 0


def _proc(pid: int, name: str) -> bytes:
    """Return a file of a process in /proc; b"" if the process has ended or belongs to another user."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/{name}").read_bytes()
    return b""
