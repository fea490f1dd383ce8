"""Translate the names of `paddlenlp.py` to the fields of today."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from paddle_llm.config.legacy.kinds import Refused, Renamed, Stale, is_neutral
from paddle_llm.config.legacy.paddlenlp import FINETUNE_NAMES, NOT_OFFERED, OLD_NAMES
from paddle_llm.config.parsing.arguments import BARE, RawValue
from paddle_llm.config.run_config import FINETUNE_ONLY, PRETRAIN_ONLY, SCRIPTS, Entry

KNOWN_NAMES: frozenset[str] = frozenset(OLD_NAMES) | frozenset(FINETUNE_NAMES) | frozenset(NOT_OFFERED)


def names_of(entry: str) -> dict[str, Renamed | Stale | Refused]:
    """Return all names that the script of `entry` accepts and that are not fields of it."""
    return {**OLD_NAMES, **NOT_OFFERED, **(FINETUNE_NAMES if entry == "finetune" else {})}


@dataclass
class Translated:
    """Result of a translation.

    Attributes:
        given: Raw values under the names of today.
        problems: Messages about refused names.
        notices: Messages about translated names and names without effect.
    """

    given: list[RawValue] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)


def translate(given: list[RawValue], entry: Entry, fields: frozenset[str] | set[str]) -> Translated:
    """Translate old names to the names of today. Unknown keys are kept unchanged.

    Args:
        given: Raw values in ascending order of precedence.
        entry: Script that runs.
        fields: Names of the fields of that script.
    """
    result = Translated()
    values = {one.name: one.raw for one in given}
    names = names_of(entry)
    for one in given:
        rule = None if one.name in fields else names.get(one.name)
        wrong_script = _wrong_script(one, rule, entry)
        if wrong_script:
            result.problems.append(wrong_script)
        elif isinstance(rule, Renamed):
            _rename(one, rule, values, result)
        elif isinstance(rule, Stale):
            if not is_neutral(_plain(one.raw), rule.neutral):
                result.notices.append(f"{one.display_name()} has no effect: {rule.why}.")
        elif isinstance(rule, Refused):
            if not is_neutral(_plain(one.raw), rule.neutral):
                result.problems.append(f"{one.display_name()} = {_shown(one.raw)} is not supported: {rule.why}.")
        else:
            result.given.append(one)
    return result


def _wrong_script(one: RawValue, rule: Renamed | Stale | Refused | None, entry: Entry) -> str:
    """Return a message if a key, or its translation, belongs to the other script; else ""."""
    if entry == "pretrain":
        if one.name not in FINETUNE_ONLY and one.name not in FINETUNE_NAMES:
            return ""
        return f"{one.display_name()} belongs to {SCRIPTS['finetune']}, not to {SCRIPTS[entry]}. Remove it."
    name = rule.new if isinstance(rule, Renamed) else one.name
    if name not in PRETRAIN_ONLY or (isinstance(rule, Renamed) and _requests_default(one, rule)):
        return ""
    return f"{one.display_name()} belongs to {SCRIPTS['pretrain']}, not to {SCRIPTS[entry]}. Remove it: {PRETRAIN_ONLY[name]}."


def _requests_default(one: RawValue, rule: Renamed) -> bool:
    return rule.convert is not None and rule.convert(_plain(one.raw)) is None


def _rename(one: RawValue, rule: Renamed, values: dict[str, Any], result: Translated) -> None:
    raw = one.raw
    if rule.convert is not None:
        raw = rule.convert(_plain(raw))
        if raw is None:
            return
    if rule.plus:
        try:
            raw = int(raw) + int(values[rule.plus])
        except KeyError:
            result.problems.append(
                f"{one.display_name()} is added to --{rule.plus}, which is missing. Give --{rule.plus}, or --{rule.new} instead."
            )
            return
        except (TypeError, ValueError):
            result.problems.append(f"{one.display_name()} = {_shown(one.raw)} is not a whole number. Give one.")
            return
    result.given.append(replace(one, name=rule.new, raw=raw, old=one.name))
    if one.is_flag:
        result.notices.append(f"--{one.name} {_shown(one.raw)} is read as --{rule.new} {_shown(raw)}")
    else:
        result.notices.append(f'{one.display_name()}: {_shown(one.raw)} is read as "{rule.new}": {_shown(raw)}')


def _plain(raw: Any) -> Any:
    return True if raw is BARE else raw


def _shown(raw: Any) -> str:
    return " ".join(map(str, raw)) if isinstance(raw, list) else str(raw).lower() if isinstance(raw, bool) else str(raw)
