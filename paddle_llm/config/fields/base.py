"""What all groups of fields share: frozen, no unknown names, no conversions in silence; and how a path is declared."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

# `Field(..., json_schema_extra=PATH)`: the value is a path, in which ~ and variables of the environment are expanded.
PATH: dict[str, Any] = {"path": "one"}
# The value is one path, or weights and paths in turn.
BLEND: dict[str, Any] = {"path": "blend"}


class Group(BaseModel):
    """A group of fields. The first line of a subclass's docstring is its heading in --help and in the README."""

    # `strict`: text is turned into typed values by values.py alone, which says what it did not understand.
    # `protected_namespaces`: PaddleNLP's own names begin with `model_`.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, protected_namespaces=(), allow_inf_nan=False)
