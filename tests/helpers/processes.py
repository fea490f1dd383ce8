"""Processes that tests start, kill and wait for."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


def is_running(pid: int) -> bool:
    """Return whether a process exists and is not a zombie."""
    return _state(pid) not in "ZX"


def running(pids: Iterable[int]) -> list[int]:
    """Return those of `pids` that are running."""
    return [pid for pid in pids if is_running(pid)]


@contextmanager
def processor_seconds_of_children() -> Iterator[list[float]]:
    """Yield a list that afterwards has one entry: the processor seconds of the children that ended in the block."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent: list[float] = []
    yield spent
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def descendants(pid: int) -> list[int]:
    """Return the process ids of children, their children, and so on."""
    found = []
    for child in _children(pid):
        found += [child, *descendants(child)]
    return found


def wait_until_blocked(pids: Sequence[int], seconds: float = 100) -> None:
    """Wait until the main thread of every process waits for something, for example in a collective.

    Such a thread sleeps in ten checks in a row. A thread that waits for a free core does not sleep.
    """

    def all_sleep() -> bool:
        for _ in range(10):
            if any(_state(pid) != "S" for pid in pids):
                return False
            time.sleep(0.02)
        return True

    wait_until(all_sleep, seconds, f"the processes {list(pids)} wait")


def wait_until(condition: Callable[[], object], seconds: float, what: str) -> None:
    """Wait for a condition.

    Raises:
        AssertionError: If it does not hold after `seconds`.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not after {seconds} s: {what}"
        time.sleep(0.05)


def _state(pid: int) -> str:
    """Return the state of the main thread of a process as in /proc; X if it has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return "X"


def _children(pid: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += map(int, task.read_text().split())
        except OSError:
            continue
    return found
