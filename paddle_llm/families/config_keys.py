"""Helpers for translating the fields of a config.json between Hugging Face and PaddleNLP."""

from __future__ import annotations

import math
from typing import Any

from paddle_llm.core.errors import UserError


def rename(values: dict[str, Any], names: dict[str, str]) -> None:
    """Move values to PaddleNLP's names.

    Args:
        values: Fields; changed in place.
        names: PaddleNLP's name of each other name.

    Raises:
        UserError: If both names are present with different values.
    """
    for old, new in names.items():
        if old in values:
            value = values.pop(old)
            if values.setdefault(new, value) != value:
                raise UserError(f"config.json: {old} {value!r} contradicts {new} {values[new]!r}. Remove one of them.")


def expect(raw: dict[str, Any], problems: list[str], **wanted: Any) -> None:
    """Add a problem for each field of `raw` that is present with another value than the wanted ones.

    A null counts as false where false is wanted, as in Python.

    Args:
        raw: Fields of config.json.
        problems: List that is extended.
        wanted: Allowed value of a field, or a tuple of them.
    """
    for key, value in wanted.items():
        allowed = value if isinstance(value, tuple) else (value,)
        found = raw.get(key, allowed[0])
        if found not in allowed and not (found is None and not allowed[0]):
            problems.append(f"{key} {raw[key]!r} (only {' or '.join(map(repr, allowed))})")


def expect_head_width(values: dict[str, Any], raw: dict[str, Any], problems: list[str]) -> None:
    """Add a problem if heads x head width is not the hidden size."""
    hidden, heads, head = values.get("hidden_size"), values.get("num_attention_heads"), raw.get("head_dim")
    if head is not None and hidden is not None and heads and head * heads != hidden:
        problems.append(f"head_dim {head} with hidden_size {hidden} and {heads} heads (only hidden_size / heads)")


def is_above_zero(value: Any) -> bool:
    """Return whether a value of a JSON file is a finite number above 0."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value > 0


def same(config: Any, *names: str) -> dict[str, Any]:
    """Return the attributes of PaddleNLP's configuration that config.json has under the same names."""
    return {name: getattr(config, name) for name in names}
