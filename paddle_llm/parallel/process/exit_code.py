"""How the process of a rank ends: with its own exit code, whatever the others do at that moment.

Paddle 3.3.1: the thread that serves a TCPStore (the job's on its first rank, a gloo group's on the group's first) writes a
line to the log when a peer has gone. Where a peer goes while this process is in its last moments, the C++ objects that
logging needs are gone already, and the process is aborted: a job that has done all that it should ends with -6 (SIGABRT).
Of jobs with four ranks on two busy cores one in twenty did. So the process leaves when Python has ended, before those objects do.
"""

from __future__ import annotations

import atexit
import ctypes
from functools import cache


@cache
def keep_exit_code() -> None:
    """Let this process leave with its own exit code. For each rank of a job of several; may be called again."""
    atexit.register(_leave_when_python_has_ended)


def _leave_when_python_has_ended() -> None:
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "on_exit"):  # another C library than glibc
        return
    for stream in ("stdout", "stderr"):  # not all of them, as with NULL: it would wait for a thread that reads
        libc.fflush(ctypes.c_void_p.in_dll(libc, stream))
    # Of what is registered for the end the last comes first; on_exit hands its function the exit code.
    libc.on_exit(libc._exit, None)
