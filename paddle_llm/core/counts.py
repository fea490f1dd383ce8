"""Counts in messages: `1 file`, `2 files`."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, which is in the singular for 1."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
