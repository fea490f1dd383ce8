"""Keys of a config.json that nobody reads and that are nearly the name of one that is absent: the default counts instead."""

from __future__ import annotations

import difflib
from functools import cache
from typing import Any

from paddle_llm.core.console import say
from paddle_llm.families import Family
from paddle_llm.models.configuration.known_fields import unknown_fields

_SHOWN = 8
_CLOSE = 0.85  # at 0.7 use_fast_layer_norm, which other versions have, counted as use_fused_rms_norm


def say_misspelled(family: Family, values: dict[str, Any], where: str) -> None:
    """One line for each such key; once in a process.

    Args:
        values: of a config.json, under the names that PaddleNLP's class has.
        where: the folder.
    """
    for key, meant, default in misspelled(family, values):
        _say_once(
            f"{where}/config.json: {key} is no setting of this model, and {meant} is not there: {default!r} is taken for it"
        )


def report_unknown(family: Family, values: dict[str, Any], raw: dict[str, Any], where: str) -> None:
    """One line about the fields of a config.json that this model does not use; once in a process.

    Args:
        values: of the config.json, under PaddleNLP's names.
        raw: of the config.json, as it is.
    """
    close = {key for key, _, _ in misspelled(family, values)}
    unknown = [key for key in unknown_fields(family.name, raw, set(_defaults(family))) if key not in close]
    if unknown:
        shown = ", ".join(unknown[:_SHOWN]) + (f" and {len(unknown) - _SHOWN} more" if len(unknown) > _SHOWN else "")
        _say_once(f"{where}/config.json: {len(unknown)} fields are unknown for {family.title} and not used: {shown}")


def misspelled(family: Family, values: dict[str, Any]) -> list[tuple[str, str, Any]]:
    """(key, the name that it nearly is, the value that counts as things are)."""
    defaults = _defaults(family)
    absent = [name for name in defaults if name not in values]
    found = []
    for key in values.keys() - defaults.keys():
        close = difflib.get_close_matches(key, absent, 1, _CLOSE)
        found += [(key, close[0], defaults[close[0]]) for _ in close]
    return sorted(found)


def _defaults(family: Family) -> dict[str, Any]:
    """What PaddleNLP's class of a family reads, and its defaults."""
    config = family.load("config_class")()
    return {**vars(config), **{old: getattr(config, new, None) for old, new in config.attribute_map.items()}}


@cache
def _say_once(line: str) -> None:
    say(line)
