"""Report fields of a config.json that the model does not use, and misspelled ones."""

from __future__ import annotations

import difflib
from functools import cache
from typing import Any

from paddle_llm.core.console import say
from paddle_llm.core.counts import counted_are
from paddle_llm.families import Family
from paddle_llm.models.configuration.known_fields import unknown_fields

_SHOWN = 8
_CLOSE = 0.85  # at 0.7 use_fast_layer_norm of other versions is close to use_fused_rms_norm


def report_misspelled(family: Family, values: dict[str, Any], where: str) -> None:
    """Report each unused field whose name is close to that of an absent field; once in a process.

    Args:
        family: Family of the model.
        values: Fields under PaddleNLP's names.
        where: Folder, which messages name.
    """
    for key, meant, default in misspelled(family, values):
        _say_once(
            f"{where}/config.json: unknown field {key} (did you mean {meant}?). Using the default {meant} = {default!r}."
        )


def report_unknown(family: Family, values: dict[str, Any], raw: dict[str, Any], where: str) -> None:
    """Report the fields of a config.json that this model does not use; once in a process.

    Args:
        family: Family of the model.
        values: Fields under PaddleNLP's names.
        raw: Fields of the config.json.
        where: Folder, which messages name.
    """
    close = {key for key, _, _ in misspelled(family, values)}
    unknown = [key for key in unknown_fields(family.name, raw, set(_defaults(family))) if key not in close]
    if unknown:
        shown = ", ".join(unknown[:_SHOWN]) + (f" and {len(unknown) - _SHOWN} more" if len(unknown) > _SHOWN else "")
        _say_once(
            f"{where}/config.json: {counted_are(len(unknown), 'field')} unknown for {family.title} and not used: {shown}"
        )


def misspelled(family: Family, values: dict[str, Any]) -> list[tuple[str, str, Any]]:
    """Return (unknown field, field with a close name, its default) for each misspelled field."""
    defaults = _defaults(family)
    absent = [name for name in defaults if name not in values]
    found = []
    for key in values.keys() - defaults.keys():
        close = difflib.get_close_matches(key, absent, 1, _CLOSE)
        found += [(key, close[0], defaults[close[0]]) for _ in close]
    return sorted(found)


def _defaults(family: Family) -> dict[str, Any]:
    """Return the fields that PaddleNLP's class reads, with their defaults."""
    config = family.load("config_class")()
    return {**vars(config), **{old: getattr(config, new, None) for old, new in config.attribute_map.items()}}


@cache
def _say_once(line: str) -> None:
    say(line)
