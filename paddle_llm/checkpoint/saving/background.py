"""Write the checkpoints of a rank in a process beside it, while the rank goes on.

A save copies the tensors to one of two buffers and returns. The second buffer exists only if a save began while the one
before was being written.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from paddle_llm.checkpoint.format.writer import LocalTensor
from paddle_llm.checkpoint.saving.buffers import SharedBuffer
from paddle_llm.checkpoint.saving.peers import Address
from paddle_llm.checkpoint.saving.process import IGNORED_SIGNALS
from paddle_llm.checkpoint.saving.protocol import Content

COMMAND = (sys.executable, "-m", "paddle_llm.checkpoint.saving.process")
_ROOT = Path(__file__).parents[3]
_PIPE_BYTES = 1 << 20  # a task fits, so that sending it does not wait for the process, which may be starting


@dataclass(frozen=True)
class Outcome:
    """How a save has ended.

    Attributes:
        ended: When it ended, by `time.monotonic`.
        nbytes: Bytes of the checkpoint on all disks; 0 after a failure.
        problem: Why it failed; None after a success.
        is_lost: Whether the process of a rank has ended, so that no further checkpoint can be written with these processes.
        is_own: Whether that is the process of this rank.
    """

    ended: float
    nbytes: int = 0
    problem: str | None = None
    is_lost: bool = False
    is_own: bool = False


@dataclass(frozen=True)
class Filled:
    """Tensors in a buffer.

    Attributes:
        buffer: Number of the buffer.
        content: JSON of `SharedBuffer.fill`.
    """

    buffer: int
    content: dict[str, Any]


class BackgroundWriter:
    """The process that writes the checkpoints of this rank.

    Args:
        rank: This rank.
        host: Name or address at which the other ranks reach this one.
    """

    def __init__(self, rank: int, host: str = "127.0.0.1") -> None:
        self._rank, self._host = rank, host
        self._buffers = [SharedBuffer(), SharedBuffer()]
        self._in_use: int | None = None  # buffer of the save in progress
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def is_busy(self) -> bool:
        """Whether a save has begun whose outcome `wait` has not returned."""
        return self._in_use is not None

    def fill(self, tensors: Mapping[str, LocalTensor]) -> Filled:
        """Copy tensors to the buffer that is not being written.

        Raises:
            OSError: If the system has not enough memory.
        """
        free = 1 if self._in_use == 0 else 0
        return Filled(free, self._buffers[free].fill(tensors))

    def start(self, gather: Callable[[Any], list[Any]]) -> None:
        """Start the process, unless it and those of all other ranks are running. Collective over all ranks.

        Args:
            gather: Collective that returns an object of every rank.
        """
        running = gather(self._is_running())
        if all(running):
            return
        self.kill()
        listener = None
        if self._rank == 0 and len(running) > 1:
            is_local = self._host in ("127.0.0.1", "localhost")
            listener = socket.create_server(("127.0.0.1" if is_local else "", 0), backlog=1024)
        port = 0 if listener is None else listener.getsockname()[1]
        addresses = gather(Address(self._host, port, uuid4().hex).to_json())
        handles = [buffer.handle for buffer in self._buffers]
        listening = [] if listener is None else [listener.fileno()]
        with _signals_blocked():  # inherited by the process, until it ignores them
            self._process = subprocess.Popen(
                COMMAND,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                pass_fds=[*handles, *listening],
                env={**os.environ, "PYTHONPATH": os.pathsep.join([str(_ROOT), *_given_path()])},
            )
        if listener is not None:
            listener.close()
        with contextlib.suppress(OSError):
            assert self._process.stdin is not None
            fcntl.fcntl(self._process.stdin, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        self._send(
            {
                "parent": os.getpid(),
                "rank": self._rank,
                "world_size": len(addresses),
                "address": addresses[0],
                "listener": listening[0] if listening else None,
                "buffers": handles,
            }
        )

    def submit(self, filled: Filled, content: Content) -> None:
        """Begin to write a checkpoint whose staging folder exists. `start` was called, and no save is in progress.

        Args:
            filled: Tensors of this rank.
            content: What the checkpoint contains beside them.
        """
        assert not self.is_busy
        self._in_use = filled.buffer
        self._send({"buffer": filled.buffer, "filled": filled.content, "content": content.to_json()})

    def has_ended(self) -> bool:
        """Return whether the save in progress has ended, without waiting."""
        return self.is_busy and bool(select.select([self._stdout()], [], [], 0)[0])

    def wait(self) -> Outcome:
        """Wait for the end of the save in progress and return its outcome. It ends in any case, if not all ranks wait, too."""
        line = self._stdout().readline()
        self._in_use = None
        if line:
            return Outcome(**{"ended": time.monotonic(), **json.loads(line)})
        assert self._process is not None
        code = self._process.wait()
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        problem = f"the process that writes checkpoints for rank {self._rank} {how}"
        return Outcome(time.monotonic(), problem=problem, is_lost=True, is_own=True)

    def close(self) -> None:
        """End the process. No save is in progress."""
        if self._process is not None:
            self._send(None)
            self._process.wait()
            self.kill()

    def kill(self) -> None:
        """End the process at once. A save in progress stays incomplete."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process, self._in_use = None, None

    def _is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def _send(self, value: Any) -> None:
        assert self._process is not None and self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended; `wait` returns that
            self._process.stdin.write(json.dumps(value).encode() + b"\n")
            self._process.stdin.flush()

    def _stdout(self) -> Any:
        assert self._process is not None
        return self._process.stdout


@contextlib.contextmanager
def _signals_blocked() -> Any:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, IGNORED_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _given_path() -> list[str]:
    return [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
