"""Detects a text that repeats one sequence of tokens exactly, as greedy decoding of a weak model does without end."""

from __future__ import annotations

from collections.abc import Sequence

LONGEST_CYCLE = 32
REPETITIONS = 8
SHORTEST_TAIL = 64


def ends_in_cycle(tokens: Sequence[int]) -> bool:
    """Return whether a text ends with the same sequence of tokens, repeated many times without a difference.

    The sequence has at most `LONGEST_CYCLE` tokens, occurs at least `REPETITIONS` times, and its repetitions have at
    least `SHORTEST_TAIL` tokens together. Rows of a table, a chorus or a line of dashes in an ordinary text are
    shorter.

    Args:
        tokens: Tokens of the text so far, without the prompt.
    """
    for period in range(1, LONGEST_CYCLE + 1):
        length = max(SHORTEST_TAIL, REPETITIONS * period)
        if length > len(tokens):
            return False
        if tokens[-1] != tokens[-1 - period]:
            continue
        tail = tokens[-length:]
        if tail[period:] == tail[:-period]:
            return True
    return False
