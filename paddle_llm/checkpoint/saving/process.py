"""The process that writes the checkpoints of one rank: `python -m paddle_llm.checkpoint.saving.process`.

Its rank sends one line of JSON per save on stdin and gets one line with the outcome on stdout; the tensors are in memory of
both (`buffers.py`). The process ends with its rank, also if the rank is killed, and with the processes of the other ranks:
then the staging folder stays, which is not a checkpoint.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from typing import Any

from paddle_llm.checkpoint.saving.buffers import SharedBuffer
from paddle_llm.checkpoint.saving.peers import Address, Peers
from paddle_llm.checkpoint.saving.protocol import Content, SaveFailed, save_checkpoint

IGNORED_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)  # the rank decides what a request to stop means
EXIT_LOST = 1
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main() -> None:
    """Write the checkpoints that the rank requests, until it closes stdin or asks for the end."""
    for number in IGNORED_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    # Signals to the process group of the rank are not for this process. It stays in the session of the rank, with which it
    # shares processor time: Linux divides the time among sessions.
    os.setpgid(0, 0)
    start = json.loads(sys.stdin.buffer.readline())
    _end_with(start["parent"])
    reports = _Reports()
    listener = None if start["listener"] is None else socket.socket(fileno=start["listener"])
    address = Address(**start["address"])
    peers = Peers(start["rank"], start["world_size"], address, listener, on_loss=reports.end)
    buffers = [SharedBuffer(handle) for handle in start["buffers"]]
    for line in sys.stdin.buffer:
        task = json.loads(line)
        if task is None:
            break
        reports.begin()
        reports.send(_save(task, buffers[task["buffer"]], peers))
    os._exit(0)  # threads still wait for the other processes


def _save(task: dict[str, Any], buffer: SharedBuffer, peers: Peers) -> dict[str, Any]:
    """Write a checkpoint and return the outcome."""
    tensors = buffer.tensors(task["filled"])
    try:
        nbytes = save_checkpoint(Content.from_json(task["content"]), tensors, peers.gather)
    except SaveFailed as error:
        return {"problem": str(error)}
    return {"nbytes": nbytes, "ended": time.monotonic()}


class _Reports:
    """Sends outcomes to the rank: one per save."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._saving = False

    def begin(self) -> None:
        """Remember that a save has begun."""
        with self._lock:
            self._saving = True

    def send(self, outcome: dict[str, Any]) -> None:
        """Send the outcome of the save."""
        with self._lock:
            self._saving = False
            print(json.dumps(outcome), flush=True)

    def end(self, problem: str) -> None:
        """End this process because another one has ended, and report that to the rank if a save is in progress."""
        with self._lock, suppress(OSError):
            if self._saving:
                print(json.dumps({"problem": problem, "is_lost": True}), flush=True)
        os._exit(EXIT_LOST)


def _end_with(parent: int) -> None:
    """Let the kernel kill this process when its rank ends (or the thread of the rank that started it)."""
    prctl = getattr(ctypes.CDLL(None, use_errno=True), "prctl", None)
    if prctl is not None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(EXIT_LOST)


if __name__ == "__main__":
    main()
