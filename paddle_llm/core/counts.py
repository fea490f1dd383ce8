"""Counts in messages: `1 file`, `2 files`."""

from __future__ import annotations


def counted(number: int, noun: str, plural: str = "") -> str:
    """Return a number with its noun.

    Args:
        number: Count.
        noun: Singular.
        plural: Plural; by default the singular with an s.
    """
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def counted_are(number: int, noun: str) -> str:
    """Return a number with its noun and the verb: `1 file is`, `2 files are`."""
    return f"{counted(number, noun)} {'is' if number == 1 else 'are'}"
