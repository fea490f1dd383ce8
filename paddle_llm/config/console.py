"""Where talk goes: stderr, rank 0 only, one line at a time. Results go to stdout, by `print`."""

from __future__ import annotations

import sys

from paddle_llm.config.errors import is_first_rank


def say(line: str) -> None:
    """Print one line of talk on stderr, on rank 0 only."""
    if is_first_rank():
        print(line, file=sys.stderr, flush=True)
