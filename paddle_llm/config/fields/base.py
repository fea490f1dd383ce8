"""Base class of all groups of fields, and the declaration of paths."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

# `Field(..., json_schema_extra=PATH)`: the value is a path, in which ~ and environment variables are expanded.
PATH: dict[str, Any] = {"path": "one"}
# The value is one path, or alternating weights and paths.
BLEND: dict[str, Any] = {"path": "blend"}


class Group(BaseModel):
    """A group of fields: frozen, without unknown names and implicit conversions.

    The first line of a subclass's docstring is its heading in --help and in docs/reference/flags.md.
    """

    # `strict`: only parsing/values.py converts text to typed values, with a message for each value that it does not accept.
    # `protected_namespaces`: some of PaddleNLP's names begin with `model_`.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, protected_namespaces=(), allow_inf_nan=False)
