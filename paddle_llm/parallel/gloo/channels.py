"""Point-to-point sends and receives without deadlocks.

A send may block until the peer receives. NCCL processes a batch of sends and receives together, and its `isend` returns
at once. Here each direction to each peer is a channel: transfers of one channel are done in order, those of different
channels at the same time. A batch ends when every channel has finished its part, exactly when it would end with NCCL.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable


class Task:
    """The result of a collective or transfer: finished, unless a channel still works on it."""

    def __init__(self) -> None:
        self._finished = threading.Event()
        self._error: BaseException | None = None

    @classmethod
    def done(cls) -> Task:
        """Return a finished task."""
        task = cls()
        task._finished.set()
        return task

    def run(self, work: Callable[[], object]) -> None:
        """Do the work and keep its error."""
        try:
            work()
        except BaseException as error:
            self._error = error
        self._finished.set()

    def wait(self, timeout: object = None) -> bool:
        """Wait until the task is finished, and raise the error of its work."""
        self._finished.wait()
        if self._error is not None:
            raise self._error
        return True

    def is_completed(self) -> bool:
        """Return whether the task is finished."""
        return self._finished.is_set()

    def synchronize(self) -> None:
        """Wait until the task is finished."""
        self.wait()


class Channel:
    """One direction to one peer. Work is done in the order in which it is submitted."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._queue: queue.SimpleQueue[tuple[Task, Callable[[], object]]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._last: Task | None = None

    def submit(self, work: Callable[[], object], task: Task | None = None) -> Task:
        """Do the work in the channel's thread.

        Args:
            work: Function to call.
            task: Task of the work; by default a new one.
        """
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, name=self._name, daemon=True)
            self._thread.start()
        task = self._last = task or Task()
        self._queue.put((task, work))
        return task

    def call(self, work: Callable[[], object]) -> Task:
        """Do the work before returning; in the calling thread if nothing is queued before it."""
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
    """The transfers, of all groups, between `_start_coalescing` and `_end_coalescing`."""

    def __init__(self) -> None:
        self._work: list[tuple[Task, Channel, Callable[[], object]]] = []

    def add(self, channel: Channel, work: Callable[[], object]) -> Task:
        """Add a transfer."""
        task = Task()
        self._work.append((task, channel, work))
        return task

    def run(self) -> None:
        """Do all transfers at the same time; return when all are done."""
        if len(self._work) == 1:
            task, channel, work = self._work[0]
            channel.call(lambda: task.run(work))
        else:
            for task, channel, work in self._work:
                channel.submit(work, task)
        for task, _, _ in self._work:
            task.wait()
