"""Names of the types of JSON values, for messages."""

from __future__ import annotations

_NAMES = ((bool, "a boolean"), (int | float, "a number"), (str, "text"), (list | tuple, "a list"), (dict, "an object"))


def describe_type(value: object) -> str:
    """Return the type of a value as it follows "is": "null", "a number", "a list" ..."""
    if value is None:
        return "null"
    if value != value:
        return "NaN (a missing value is null in JSON)"
    return next((name for kind, name in _NAMES if isinstance(value, kind)), type(value).__name__)
