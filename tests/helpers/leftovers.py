"""Pytest plugin: a session fails if a process that its tests started still runs at its end.

Processes are recognised by a variable in their environment, which all descendants inherit: an orphan has no other mark.
The servers of `multiprocessing` belong to the session itself and end with it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path
from uuid import uuid4

import pytest

VARIABLE = "TEST_SESSIONS"  # identifiers of this session and of those around it
_GRACE_SECONDS = 5.0


class Leftovers:
    """Finds the processes that a session has left.

    Attributes:
        found: (process id, command line) of each, known after the session.
    """

    def __init__(self) -> None:
        self._mark = uuid4().hex
        self.found: list[tuple[int, str]] = []
        os.environ[VARIABLE] = ":".join(filter(None, (os.environ.get(VARIABLE), self._mark)))

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        deadline = time.monotonic() + _GRACE_SECONDS
        self.found = self._running()
        while self.found and time.monotonic() < deadline:
            time.sleep(0.1)
            self.found = self._running()
        for pid, _ in self.found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self.found and exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.found:
            terminalreporter.section("processes that tests left running (killed now)")
            for pid, command in self.found:
                terminalreporter.line(f"{pid}: {command}", red=True)

    def _running(self) -> list[tuple[int, str]]:
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                variables = (folder / "environ").read_bytes().split(b"\0")
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, ValueError, IndexError):  # it has ended, or is another user's
                continue
            sessions = [value for value in variables if value.startswith(f"{VARIABLE}=".encode())]
            marked = any(self._mark.encode() in value for value in sessions)
            server = parent == os.getpid() and "multiprocessing" in command
            if marked and command and not server and int(folder.name) != os.getpid():
                found.append((int(folder.name), command))
        return found


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Leftovers(), "leftovers")
