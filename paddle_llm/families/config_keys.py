"""Helpers for translating the fields of a config.json between Hugging Face and PaddleNLP."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from paddle_llm.core.errors import UserError

if TYPE_CHECKING:
    from paddlenlp.transformers import PretrainedConfig


def rename(values: dict[str, Any], names: dict[str, str]) -> None:
    """Rename fields to PaddleNLP's names.

    Args:
        values: Fields; changed in place.
        names: PaddleNLP's name by other name.

    Raises:
        UserError: If both names are present with different values.
    """
    for old, new in names.items():
        if old in values:
            value = values.pop(old)
            if values.setdefault(new, value) != value:
                raise UserError(
                    f"config.json: {old} = {value!r} contradicts {new} = {values[new]!r}. Remove one of them."
                )


def expect(raw: dict[str, Any], problems: list[str], **supported: Any) -> None:
    """Add a problem for each field of `raw` whose value is not supported. An absent field is not a problem.

    Null is accepted where false, 0 or None is supported.

    Args:
        raw: Fields of config.json.
        problems: List that is extended.
        **supported: Supported value of a field, or a tuple of them.
    """
    for key, value in supported.items():
        allowed = value if isinstance(value, tuple) else (value,)
        found = raw.get(key, allowed[0])
        if found not in allowed and not (found is None and not allowed[0]):
            problems.append(f"{key} = {raw[key]!r} (supported: {' or '.join(map(repr, allowed))})")


def expect_head_width(values: dict[str, Any], raw: dict[str, Any], problems: list[str]) -> None:
    """Add a problem if heads x head width is not the hidden size."""
    hidden, heads, head = values.get("hidden_size"), values.get("num_attention_heads"), raw.get("head_dim")
    if head is not None and hidden is not None and heads and head * heads != hidden:
        problems.append(
            f"head_dim = {head} with hidden_size = {hidden} and {heads} heads (supported: hidden_size / heads)"
        )


def is_above_zero(value: Any) -> bool:
    """Return whether a value of a JSON file is a finite number above 0."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value > 0


def same(config: PretrainedConfig, *names: str) -> dict[str, Any]:
    """Return attributes of PaddleNLP's configuration that have the same names in config.json."""
    return {name: getattr(config, name) for name in names}
