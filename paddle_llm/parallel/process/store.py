"""Interface of the store through which the processes of a job exchange small values, for annotations."""

from __future__ import annotations

from typing import Protocol


class Store(Protocol):
    """Paddle's TCPStore (3.3.1), whose stub declares the values as text."""

    def set(self, key: str, value: bytes) -> None:
        """Store a value."""
        ...

    def get(self, key: str) -> bytes:
        """Wait until a value is stored, and return it."""
        ...
