"""Point-to-point sends and receives that do not deadlock.

A send may block until the peer receives. On NCCL a batch of sends and receives progresses all at once, and `isend`
returns at once. So each direction to each peer is a channel: what is sent through it goes in order, channels go side by
side. A batch ends when every channel has done its part, which is exactly when it would end on NCCL.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any


class Task:
    """What a collective returns: finished already, unless a channel still has work to do for it."""

    def __init__(self) -> None:
        self._finished = threading.Event()
        self._error: BaseException | None = None

    @classmethod
    def done(cls) -> Task:
        task = cls()
        task._finished.set()
        return task

    def run(self, work: Callable[[], Any]) -> None:
        try:
            work()
        except BaseException as error:
            self._error = error
        self._finished.set()

    def wait(self, timeout: Any = None) -> bool:
        """Block until finished; raises here what went wrong in the channel."""
        self._finished.wait()
        if self._error is not None:
            raise self._error
        return True

    def is_completed(self) -> bool:
        return self._finished.is_set()

    def synchronize(self) -> None:
        self.wait()


class Channel:
    """One direction to one peer: work is done in the order in which it came."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._queue: queue.SimpleQueue[tuple[Task, Callable[[], Any]]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._last: Task | None = None

    def submit(self, work: Callable[[], Any], task: Task | None = None) -> Task:
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, name=self._name, daemon=True)
            self._thread.start()
        task = self._last = task or Task()
        self._queue.put((task, work))
        return task

    def call(self, work: Callable[[], Any]) -> Task:
        """Do it now, in this thread when nothing is queued before it."""
        if self._last is None or self._last.is_completed():
            work()
            return Task.done()
        task = self.submit(work)
        task.wait()
        return task

    def _serve(self) -> None:
        while True:
            task, work = self._queue.get()
            task.run(work)


class Batch:
    """The sends and receives between `_start_coalescing` and `_end_coalescing`, of any group."""

    def __init__(self) -> None:
        self._work: list[tuple[Task, Channel, Callable[[], Any]]] = []

    def add(self, channel: Channel, work: Callable[[], Any]) -> Task:
        task = Task()
        self._work.append((task, channel, work))
        return task

    def run(self) -> None:
        """Do all of it, side by side; returns when all is done."""
        if len(self._work) == 1:
            task, channel, work = self._work[0]
            channel.call(lambda: task.run(work))
        else:
            for task, channel, work in self._work:
                channel.submit(work, task)
        for task, _, _ in self._work:
            task.wait()
