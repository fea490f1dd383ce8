"""Changes to JSON values, to JSON text and to bytes, each drawn from a seeded generator."""

from __future__ import annotations

import copy
import gzip
import json
import random
from typing import Any

JUNK: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 10**30, 0.5, -0.0, 1e308, float("nan"), float("inf"), "", " ", "0", "-1", "null", "True", "x" * 2000,
    "\ud800", "\u0000", "../../etc/passwd", "日本語", [], {}, [[]], [None], [0, 1, 2], ["a", None, 3], {"": ""}, {"a": {"b": [1, {"c": None}]}},
    {"content": None}, {"content": "<x>", "special": True}, [{"name": "default"}], [{"role": "user", "content": "a"}],
)  # fmt: skip
KEYS = (
    "",
    "x",
    "__class__",
    "_name_or_path",
    "auto_map",
    "type",
    "name",
    "content",
    "0",
    "-1",
    "weight_map",
    "peft_type",
    "日",
)


def mutate(value: Any, rng: random.Random, changes: int | None = None) -> Any:
    """Return a copy of a JSON value with some of its parts dropped, replaced, renamed or added."""
    value = copy.deepcopy(value)
    for _ in range(changes if changes is not None else rng.choice((1, 1, 1, 2, 2, 3, 6))):
        value = _change(value, rng)
    return value


def _change(value: Any, rng: random.Random) -> Any:
    owners = list(_containers(value))
    if not owners or rng.random() < 0.01:
        return rng.choice(JUNK)
    owner = rng.choice(owners)
    kind = rng.random()
    if isinstance(owner, dict):
        key = rng.choice(list(owner)) if owner else rng.choice(KEYS)
        if kind < 0.2 and owner:
            del owner[key]
        elif kind < 0.3:
            owner[rng.choice(KEYS)] = copy.deepcopy(rng.choice(JUNK))
        elif kind < 0.35 and owner:
            key = rng.choice(list(owner))
            owner[rng.choice((key.upper(), key + "s", " " + key, *owner))] = owner.pop(key)
        else:
            owner[key] = _instead(owner.get(key), rng)
    elif not owner or kind < 0.2:
        owner.insert(rng.randint(0, len(owner)), copy.deepcopy(rng.choice(JUNK)))
    elif kind < 0.4:
        owner.pop(rng.randrange(len(owner)))
    elif kind < 0.5:
        owner.append(copy.deepcopy(rng.choice(owner)))
    else:
        at = rng.randrange(len(owner))
        owner[at] = _instead(owner[at], rng)
    return value


def _instead(value: Any, rng: random.Random) -> Any:
    if rng.random() < 0.45:
        if isinstance(value, bool):
            return rng.choice((not value, int(value), str(value), None))
        if isinstance(value, int):
            return rng.choice(
                (value + 1, value - 1, -value, 2 * value, 0, float(value), str(value), [value], value * 10**9)
            )
        if isinstance(value, float):
            return rng.choice((-value, 0.0, str(value), value * 1e6, [value]))
        if isinstance(value, str):
            return rng.choice(
                (value + "x", value[:-1], value.upper(), [value], {"content": value}, value * 50, value + "\u0000")
            )
        if isinstance(value, list):
            return rng.choice((value * 2, value[:1], {str(i): one for i, one in enumerate(value)}, str(value)))
        if isinstance(value, dict):
            return rng.choice((list(value), list(value.values()), str(value), {}))
    return copy.deepcopy(rng.choice(JUNK))


def _containers(value: Any) -> list[Any]:
    found, open_ = [], [value]
    while open_:
        one = open_.pop()
        if isinstance(one, dict):
            found.append(one)
            open_ += list(one.values())
        elif isinstance(one, list):
            found.append(one)
            open_ += one[:50]
    return found


def as_bytes(value: Any, rng: random.Random) -> bytes:
    """Write a JSON value as a file: usually valid, sometimes with repeated keys, another encoding or damage."""
    text = json.dumps(value, ensure_ascii=rng.random() < 0.5, indent=rng.choice((None, 1)))
    if rng.random() < 0.88:
        return text.encode("utf-8", "surrogatepass")
    return damage(text.encode("utf-8", "surrogatepass"), rng, value)


def damage(data: bytes, rng: random.Random, value: Any = None) -> bytes:
    """Damage the bytes of a text file."""
    kind = rng.randrange(14)
    text = data.decode("utf-8", "replace")
    if kind == 0:
        return data[: rng.randint(0, len(data))]
    if kind == 1:
        return b""
    if kind == 2:
        return b"\xef\xbb\xbf" + data
    if kind == 3:
        return text.encode(rng.choice(("utf-16", "utf-16-be", "utf-32", "gbk")), "replace")
    if kind == 4:
        return b"[" * 100_000 + data
    if kind == 5:
        return flip(data, rng)
    if kind == 6:
        return text.replace("}", ",}", 1).encode("utf-8", "replace")
    if kind == 7:
        return b"// comment\n" + data
    if kind == 8 and isinstance(value, dict) and value:
        key = rng.choice(list(value))
        again = json.dumps(key) + ": " + json.dumps(rng.choice(JUNK)) + ", "
        return text.replace("{", "{" + again, 1).encode("utf-8", "surrogatepass")
    if kind == 9:
        return text.replace(": ", ": " + "9" * 5000 + ", ", 1).encode("utf-8", "replace")
    if kind == 10:
        return text.replace("\n", "\r\n").replace(",", ",\u2028", 1).encode("utf-8", "replace")
    if kind == 11:
        return gzip.compress(data)
    if kind == 12:
        return data + data
    return rng.randbytes(rng.choice((1, 8, 100, 5000)))


def flip(data: bytes, rng: random.Random) -> bytes:
    """Replace, insert or remove some bytes."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        at = rng.randint(0, max(len(changed) - 1, 0))
        kind = rng.randrange(3)
        if kind == 0 and changed:
            changed[at] = rng.randrange(256)
        elif kind == 1:
            changed[at:at] = rng.randbytes(rng.choice((1, 4, 50)))
        else:
            del changed[at : at + rng.choice((1, 4, 50))]
    return bytes(changed)
