"""Python state as JSON and arrays: scheduler, counters, random states, states of callbacks.

Values return exactly as they were, so that a resumed run continues bit for bit. What JSON lacks is an object with one key
that begins with `$`:

| object | meaning |
|---|---|
| `{"$array": key}` | array: the tensor of this key in the index |
| `{"$number": [dtype, value]}` | number of a numpy type |
| `{"$float": "nan"}` | number that is not finite: "nan", "inf" or "-inf" |
| `{"$tuple": [...]}` | tuple |
| `{"$dict": [[key, value], ...]}` | dictionary whose keys are not all text, or begin with `$` |
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from paddle_llm.checkpoint.format.index import DTYPES, dtype_name

STATE = "state.json"
CONVERTED_FROM = "converted_from"  # key: format of the checkpoint that was converted; it has no random states


def encode(state: Any, prefix: str) -> tuple[Any, dict[str, np.ndarray]]:
    """Convert state to JSON.

    Args:
        state: Dictionaries, lists, tuples, text, numbers, None and numpy arrays.
        prefix: Beginning of the keys of arrays, such as "state" or "state/random/00003". It must differ between ranks.

    Returns:
        JSON, and arrays by key; they are written with the tensors of a rank.

    Raises:
        TypeError: If a value has another type. The message names it.
    """
    arrays: dict[str, np.ndarray] = {}
    return _encode(state, prefix, arrays), arrays


def decode(value: Any, read: Callable[[str], np.ndarray]) -> Any:
    """Return the state that `encode` was given.

    Args:
        value: JSON.
        read: Function that returns an array by its key, such as `Reader.tensor`.

    Raises:
        ValueError: If the JSON has an object with an unknown meaning.
    """
    if isinstance(value, list):
        return [decode(one, read) for one in value]
    if not isinstance(value, dict):
        return value
    marks = [key for key in value if key.startswith("$")]
    if not marks:
        return {key: decode(one, read) for key, one in value.items()}
    mark, content = marks[0], value[marks[0]]
    if len(value) != 1:
        raise ValueError(f"{mark} is not the only key of an object")
    if mark == "$array":
        return read(content)
    if mark == "$number":
        return DTYPES[content[0]].numpy.type(decode(content[1], read))
    if mark == "$float":
        return float(content)
    if mark == "$tuple":
        return tuple(decode(one, read) for one in content)
    if mark == "$dict":
        return {decode(key, read): decode(one, read) for key, one in content}
    raise ValueError(f"{mark} is unknown")


def _encode(value: Any, path: str, arrays: dict[str, np.ndarray]) -> Any:
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float:
        return value if math.isfinite(value) else {"$float": str(value)}
    if isinstance(value, np.ndarray):
        dtype_name(value)  # raises for a type that the format lacks
        while path in arrays:  # of {"a": {"b": ...}, "a/b": ...}
            path += "'"
        arrays[path] = value
        return {"$array": path}
    if isinstance(value, np.generic):
        return {"$number": [dtype_name(np.asarray(value)), _encode(value.item(), path, arrays)]}
    if type(value) is list:
        return [_encode(one, f"{path}/{position}", arrays) for position, one in enumerate(value)]
    if type(value) is tuple:
        return {"$tuple": _encode(list(value), path, arrays)}
    if type(value) is dict:
        if all(type(key) is str and not key.startswith("$") for key in value):
            return {key: _encode(one, f"{path}/{key}", arrays) for key, one in value.items()}
        pairs = enumerate(value.items())
        return {
            "$dict": [
                [_encode(key, f"{path}/{i}", arrays), _encode(one, f"{path}/{i}", arrays)] for i, (key, one) in pairs
            ]
        }
    raise TypeError(f"{path} is a {type(value).__name__}, which a checkpoint cannot store")
