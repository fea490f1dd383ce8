"""What all groups of fields share: frozen, no unknown names, no conversions in silence."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Group(BaseModel):
    """A group of fields. The first line of a subclass's docstring is its heading in --help and in the README."""

    # `strict`: text is turned into typed values by values.py alone, which says what it did not understand.
    # `protected_namespaces`: PaddleNLP's own names begin with `model_`.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, protected_namespaces=(), allow_inf_nan=False)
