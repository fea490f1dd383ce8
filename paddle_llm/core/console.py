"""Messages on stderr, from rank 0 only, one line each; and the encoding of stdout and stderr. Results go to stdout by `print`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from paddle_llm.core.errors import is_first_rank

_collectors: list[list[str]] = []
_printed_once: set[str] = set()


def say(line: str) -> None:
    """Print a message on stderr, on rank 0 only."""
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


def say_once(line: str) -> None:
    """Print a message unless this process has printed it before, because several readers of a file may report the same."""
    if line not in _printed_once:
        _printed_once.add(line)
        say(line)


def escape_unencodable() -> None:
    r"""Write characters that the encoding of stdout or stderr lacks as `\uXXXX`, so that they do not raise an error.

    An ASCII stdout is common in containers and cron jobs (LANG=C, PYTHONIOENCODING=ascii). File names that are not UTF-8
    reach Python as lone surrogates, which no encoding has.
    """
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def stdout_is_unicode() -> bool:
    """Return whether stdout can encode every character."""
    return (getattr(sys.stdout, "encoding", None) or "utf-8").lower().replace("_", "-").startswith("utf")
