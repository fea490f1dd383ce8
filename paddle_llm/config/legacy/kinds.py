"""Kinds of names that are not fields: renamed, ignored, or refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Renamed:
    """A setting that has a new name.

    Attributes:
        new: Name of the field.
        convert: Function from the old value to the new one. The result None drops the key, because it requests the default.
        plus: Name of a field whose value is added to the old value.
    """

    new: str
    convert: Callable[[Any], Any] | None = None
    plus: str = ""


@dataclass(frozen=True)
class Ignored:
    """A setting that is accepted and has no effect, because it never changed the result of the training.

    Attributes:
        why: Reason, which is reported unless the value is neutral.
        neutral: Values that are accepted without a message, because they request what happens anyway.
    """

    why: str
    neutral: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Refused:
    """A setting that is an error, because ignoring it would change the result of the training.

    Attributes:
        why: Reason. A second sentence is the remedy; without it, the remedy is to remove the setting.
        neutral: Values that are accepted without a message, because they request what happens anyway.
    """

    why: str
    neutral: tuple[Any, ...] = ()

    @property
    def reason_and_remedy(self) -> str:
        """Reason and remedy, without a final period."""
        return self.why if ". " in self.why else f"{self.why}. Remove it"


def is_neutral(raw: Any, neutral: tuple[Any, ...]) -> bool:
    """Return whether a raw value (JSON or text) equals one of `neutral`. Null, and the texts None and null, are always neutral."""
    return raw in (None, "None", "null") or _canonical(raw) in [_canonical(value) for value in neutral]


def _canonical(raw: Any) -> float | str:
    """Return a value in a form in which equal settings compare equal, such as true, "True" and 1."""
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
