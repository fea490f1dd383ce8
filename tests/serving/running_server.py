"""Starts `paddle-llm serve` as a process on a free port of loopback, as a user does."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.helpers.processes import wait_until

TEXT = "The class statement defines"


class RunningServer:
    """A server.

    Attributes:
        url: Address without a path.
        name: First name of the model.
        log: Lines on stderr so far.
        process: The process.
    """

    def __init__(self, folder: Path, *options: str | Path) -> None:
        command = [sys.executable, "-m", "paddle_llm.cli", "serve", folder, "--port", "0", *options]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen([*map(str, command)], env=environment, stderr=subprocess.PIPE, text=True)
        self.log: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        wait_until(lambda: self._line(" at http") or self.process.poll() is not None, 250, "the server listens")
        line = self._line(" at http")
        assert line, "\n".join(self.log)
        self.name, self.url = re.findall(r"serving ([^,]+).* at (http\S+)", line)[0]

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(line.rstrip("\n"))

    def _line(self, part: str) -> str:
        return next((line for line in list(self.log) if part in line), "")

    def wait_for_line(self, part: str) -> str:
        """Wait until a line of the log contains a text, and return the line."""
        wait_until(lambda: self._line(part), 60, f"the log contains {part!r}: {self.log}")
        return self._line(part)

    @property
    def engine_pid(self) -> int:
        return int(re.findall(r"engine: process (\d+)", self._line("engine: process"))[0])

    def get(self, path: str, **options: Any) -> httpx.Response:
        return httpx.get(self.url + path, timeout=120, **options)

    def post(self, path: str, body: Any, **options: Any) -> httpx.Response:
        return httpx.post(self.url + path, json=body, timeout=120, **options)

    def complete(self, **fields: Any) -> httpx.Response:
        """Post a greedy completion."""
        return self.post("/v1/completions", {"model": self.name, "prompt": TEXT, "temperature": 0, **fields})

    def chat(self, question: str, **fields: Any) -> httpx.Response:
        """Post a greedy chat completion."""
        messages = [{"role": "user", "content": question}]
        return self.post("/v1/chat/completions", {"model": self.name, "messages": messages, "temperature": 0, **fields})

    @contextmanager
    def stream(self, path: str = "/v1/completions", **fields: Any) -> Iterator[Iterator[dict[str, Any]]]:
        """Open a stream and yield its events. `[DONE]` must be the last one."""
        body = {"model": self.name, "temperature": 0, "stream": True, **fields}
        with httpx.stream("POST", self.url + path, json=body, timeout=120) as response:
            assert response.status_code == 200, response.read()
            assert response.headers["content-type"].startswith("text/event-stream")
            yield _events(response)

    def load(self) -> dict[str, Any]:
        """Return the load of the engine."""
        return self.get("/ready").json()

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal, wait for the end, and return the exit code."""
        self.process.send_signal(number)
        code = self.process.wait(120)
        self._reader.join(20)
        return code


def _events(response: httpx.Response) -> Iterator[dict[str, Any]]:
    is_done = False
    for line in response.iter_lines():
        if not line:
            continue
        assert line.startswith("data: ") and not is_done, line
        is_done = line == "data: [DONE]"
        if not is_done:
            yield json.loads(line[6:])
    assert is_done


@contextmanager
def running(folder: Path, *options: str | Path) -> Iterator[RunningServer]:
    """Run a server, and kill it if the test has not ended it."""
    server = RunningServer(folder, *options)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.stop(signal.SIGTERM)
