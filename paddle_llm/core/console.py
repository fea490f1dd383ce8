"""Where talk goes: stderr, rank 0 only, one line at a time. Results go to stdout, by `print`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from paddle_llm.core.errors import is_first_rank

_collectors: list[list[str]] = []


def say(line: str) -> None:
    """Print one line of talk on stderr, on rank 0 only."""
    if _collectors:
        _collectors[-1].append(line)
    elif is_first_rank():
        print(line, file=sys.stderr, flush=True)


@contextmanager
def collected() -> Iterator[list[str]]:
    """Collect the lines of `say` in a list instead of printing them."""
    lines: list[str] = []
    _collectors.append(lines)
    try:
        yield lines
    finally:
        _collectors.remove(lines)


_SAID: set[str] = set()


def say_once(line: str) -> None:
    """`say` a line that this process has not said yet: several readers of one file may find the same."""
    if line not in _SAID:
        _SAID.add(line)
        say(line)
