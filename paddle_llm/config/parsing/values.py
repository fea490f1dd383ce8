"""Convert JSON values and command-line text to typed values. A value that does not fit its field is an error."""

from __future__ import annotations

import contextlib
import types
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin

from paddle_llm.config.run_config import RunConfig
from paddle_llm.core.paths import PathError, expand_blend, expand_path

_TRUE = ("true", "1", "yes", "on", "y", "t")
_FALSE = ("false", "0", "no", "off", "n", "f")
_NULL = ("None", "null")

# Text fields with several words: `--sharding stage2 offload` needs no quotes.
WORD_LISTS = (
    "sharding",
    "tensor_parallel_config",
    "pipeline_parallel_config",
    "sharding_parallel_config",
    "unified_checkpoint_config",  # an old name
    "input_dir",
    "dataset_name_or_path",
)


# Field -> "one" path or a "blend" of weighted paths, as its declaration says.
PATH_FIELDS: dict[str, str] = {
    name: str(field.json_schema_extra["path"])
    for name, field in RunConfig.model_fields.items()
    if isinstance(field.json_schema_extra, dict) and "path" in field.json_schema_extra
}


class BadValue(ValueError):
    """Raised if a value does not fit its field. The message is what was expected."""


class BadPath(BadValue):
    """Raised if a path cannot be expanded. The message is the reason and the remedy."""


@dataclass(frozen=True)
class Kind:
    """Type of a field.

    Attributes:
        base: bool, int, float, str or list.
        item: Type of the items of a list.
        optional: Whether the value may be None.
        choices: Allowed values of a text; empty if all are.
    """

    base: type
    item: type | None = None
    optional: bool = False
    choices: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.choices:
            return "one of " + ", ".join(self.choices)
        if self.base is list:
            return f"a list of {_PLURALS[self.item or str]}"
        return _NAMES[self.base]


_NAMES: dict[type, str] = {
    bool: "true or false (also 1/0, yes/no)",
    int: "a whole number",
    float: "a number",
    str: "text",
}
_PLURALS: dict[type, str] = {int: "whole numbers", float: "numbers", str: "words"}


@cache
def kind_of(name: str) -> Kind:
    """Return the type of the RunConfig field `name`."""
    return _kind(RunConfig.model_fields[name].annotation)


def _kind(annotation: Any) -> Kind:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        inner = _kind(next(a for a in arguments if a is not type(None)))
        return Kind(inner.base, inner.item, True, inner.choices)
    if origin is Literal:
        return Kind(str, choices=tuple(arguments))
    if origin is list:
        return Kind(list, arguments[0])
    return Kind(annotation)


def is_null(raw: Any) -> bool:
    """Return whether a raw value requests the default: null, or the text None or null."""
    return raw is None or (isinstance(raw, str) and raw in _NULL)


def parse(name: str, raw: Any) -> Any:
    """Convert a raw value to the type of a field.

    Args:
        name: Name of the field.
        raw: JSON value, text, or list of texts from the command line. Null requests the field default.

    Raises:
        BadValue: If the value does not fit.
        BadPath: If a path cannot be expanded.
    """
    kind = kind_of(name)
    if is_null(raw):
        return RunConfig.model_fields[name].get_default(call_default_factory=True)
    value = " ".join(map(str, raw)) if is_word_list(name, raw) else _convert(kind, raw)
    if name not in PATH_FIELDS:
        return value
    try:
        return expand_blend(value) if PATH_FIELDS[name] == "blend" else expand_path(value)
    except PathError as error:
        raise BadPath(str(error)) from None


def is_word_list(name: str, raw: Any) -> bool:
    """Return whether `raw` is a list of words for a text field; the weights of a blend may be numbers."""
    kinds = (str, int, float) if PATH_FIELDS.get(name) == "blend" else (str,)
    return (
        name in WORD_LISTS
        and isinstance(raw, list)
        and all(isinstance(word, kinds) and not isinstance(word, bool) for word in raw)
    )


def _convert(kind: Kind, raw: Any) -> Any:
    if kind.choices:
        if raw not in kind.choices:
            raise BadValue(str(kind))
        return raw
    if kind.base is list:
        return _to_list(kind, raw)
    if isinstance(raw, (list, dict)):
        raise BadValue(f"{kind} (one value)")
    return _CONVERT[kind.base](raw)


def _to_list(kind: Kind, raw: Any) -> list[Any]:
    item = kind.item or str
    if isinstance(raw, str):
        raw = raw.replace(",", " ").split()
    if isinstance(raw, (int, float)) and not isinstance(raw, bool):
        raw = [raw]
    if not isinstance(raw, list):
        raise BadValue(str(kind))
    try:
        return [_CONVERT[item](value) for value in raw]
    except BadValue:
        raise BadValue(str(kind)) from None


def _to_bool(raw: Any) -> bool:
    if isinstance(raw, bool):
        return raw
    word = raw.strip().lower() if isinstance(raw, str) else str(raw)
    if word in _TRUE:
        return True
    if word in _FALSE:
        return False
    raise BadValue(_NAMES[bool])


def _to_int(raw: Any) -> int:
    number = _to_float(raw, expected=_NAMES[int])
    if isinstance(raw, str):  # a float rounds above 2**53
        with contextlib.suppress(ValueError):
            return int(raw)
    if isinstance(raw, int):
        return raw
    if number != int(number):
        raise BadValue(_NAMES[int])
    return int(number)


def _to_float(raw: Any, expected: str = _NAMES[float]) -> float:
    if isinstance(raw, bool) or not isinstance(raw, (int, float, str)):
        raise BadValue(expected)
    try:
        number = float(raw)
    except (ValueError, OverflowError):
        raise BadValue(expected) from None
    if number != number or number in (float("inf"), float("-inf")):
        raise BadValue(f"{expected} that is finite")
    return number


def _to_str(raw: Any) -> str:
    if not isinstance(raw, str):
        raise BadValue(_NAMES[str])
    return raw


_CONVERT: dict[type, Any] = {bool: _to_bool, int: _to_int, float: _to_float, str: _to_str}
