"""`EngineProcess`: starts the process of the engine and talks to it. Does not import Paddle."""

from __future__ import annotations

import queue
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from paddle_llm.core.errors import UserError
from paddle_llm.serving.engine.messages import Cancel, Failed, Load, Ready, Step, Stop
from paddle_llm.serving.engine.texts import TextRequest
from paddle_llm.serving.options import EngineOptions

_SECONDS_TO_END = 10.0


class EngineProcess:
    """The process of the engine.

    Args:
        options: Options of the engine.
        work_folder: Empty folder in which a static program may be written.
    """

    def __init__(self, options: EngineOptions, work_folder: Path) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-m", "paddle_llm.serving.engine.child", str(theirs.fileno())]
            self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        self._connection = Connection(ours.detach())
        self._outgoing: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._has_threads = False
        self._connection.send(Load(options, work_folder.resolve()))

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def wait_until_ready(self) -> Ready:
        """Wait until the model is loaded.

        Raises:
            UserError: If it cannot be loaded.
        """
        try:
            answer = self._connection.recv()
        except EOFError:
            raise UserError(f"The model could not be loaded: {self.describe_end()}. See the messages above.") from None
        if isinstance(answer, Failed):
            raise UserError(answer.message)
        ready: Ready = answer
        return ready

    def start_threads(self, on_step: Callable[[Step], None], on_end: Callable[[], None]) -> None:
        """Receive and send messages in threads, which never block the caller.

        Args:
            on_step: Function called in a thread with each step.
            on_end: Function called in a thread when the process has ended.
        """

        def receive() -> None:
            try:
                while True:
                    on_step(self._connection.recv())
            except (EOFError, OSError):
                on_end()

        def send() -> None:
            try:
                while (message := self._outgoing.get()) is not None:
                    self._connection.send(message)
            except OSError:  # the process has ended, which `receive` reports
                return

        self._has_threads = True
        for target in (receive, send):
            threading.Thread(target=target, daemon=True, name=f"engine-{target.__name__}").start()

    def send(self, message: TextRequest | Cancel) -> None:
        """Send a message; after `start_threads`."""
        self._outgoing.put(message)

    def describe_end(self) -> str:
        """Return how the process ended."""
        code = self._process.wait(_SECONDS_TO_END)
        return f"its process was killed by signal {-code}" if code < 0 else f"its process ended with code {code}"

    def stop(self) -> None:
        """End the process, and wait for its end. A process that is loading a model is killed."""
        if self._has_threads:
            self._outgoing.put(Stop())
            self._outgoing.put(None)
        else:
            self._process.kill()
        try:
            self._process.wait(_SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._connection.close()
