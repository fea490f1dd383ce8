"""What a name can be that is no field: renamed, without effect, or refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Renamed:
    """The same thing under a new name.

    Attributes:
        new: the field.
        convert: old value -> new value; None as a result drops the key (it asked for the default).
        plus: the new value is the sum of this one and that of the field named here.
    """

    new: str
    convert: Callable[[Any], Any] | None = None
    plus: str = ""


@dataclass(frozen=True)
class Stale:
    """Accepted and without effect: it never changed what is learnt. Said once, unless the value is a neutral one."""

    why: str
    neutral: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Refused:
    """An error: leaving it out would change the result. A neutral value asks for what happens anyway and passes."""

    why: str
    neutral: tuple[Any, ...] = ()


def is_neutral(raw: Any, neutral: tuple[Any, ...]) -> bool:
    """Whether `raw` (JSON or text) says one of `neutral`; null always does, and its two words."""
    return raw in (None, "None", "null") or _canonical(raw) in [_canonical(value) for value in neutral]


def _canonical(raw: Any) -> Any:
    if isinstance(raw, bool):
        return float(raw)
    if isinstance(raw, (int, float)):
        return float(raw)
    text = str(raw).strip().lower()
    if text in ("true", "false"):
        return float(text == "true")
    try:
        return float(text)
    except ValueError:
        return "" if text in ("none", "null", "[]") else text
