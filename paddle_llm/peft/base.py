"""The base model of an adapter, as `checkpoint.locate.locate_base` resolves it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class BaseModel:
    """Base model of an adapter.

    Attributes:
        name: Name to store in an adapter: the absolute path of a local folder, a published name, or "" if unknown.
        folder: Local folder of the base; None if it is not on this machine.
        problem: Sentence without its final period that says why `folder` is None; "" otherwise.
        is_requested: Whether the user named it; else the adapter's files did.
    """

    name: str
    folder: Path | None
    problem: str = ""
    is_requested: bool = False


def stored_name(base: str) -> str:
    """Return the name of a base for an adapter's files: the absolute path of a local folder, else the name."""
    folder = Path(base).expanduser()
    # os.path, because pathlib raises for a name that no file can have.
    return os.path.abspath(folder) if base and os.path.isdir(folder) else base
