"""Keep the exit code of a rank when a peer ends at the same moment.

Paddle 3.3.1: the thread that serves a TCPStore (the job's on its first rank, a gloo group's on the group's first rank)
writes a log line when a peer disconnects. If that happens while this process ends, the C++ objects that logging needs
are already destroyed and the process is aborted: a job that has finished ends with -6 (SIGABRT). This happened in one
of twenty jobs with four ranks on two busy cores. So the process ends after Python has ended and before those objects
are destroyed.
"""

from __future__ import annotations

import atexit
import ctypes
from functools import cache


@cache
def keep_exit_code() -> None:
    """Let this process end with its own exit code. For each rank of a job with several ranks; may be called again."""
    atexit.register(_exit_after_python)


def _exit_after_python() -> None:
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "on_exit"):  # another C library than glibc
        return
    for stream in ("stdout", "stderr"):  # with NULL, fflush would wait for a thread that reads another stream
        libc.fflush(ctypes.c_void_p.in_dll(libc, stream))
    # Exit handlers run in reverse order; on_exit passes the exit code to its function.
    libc.on_exit(libc._exit, None)
