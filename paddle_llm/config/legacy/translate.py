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
    """Everything that the script of `entry` understands and that is no field of it."""
    return {**OLD_NAMES, **NOT_OFFERED, **(FINETUNE_NAMES if entry == "finetune" else {})}


@dataclass
class Translated:
    """What is left after old names: keys under today's names, and what there is to say."""

    given: list[RawValue] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)


def translate(given: list[RawValue], entry: Entry, fields: frozenset[str] | set[str]) -> Translated:
    """Read old names as today's. Keys that are neither a field nor known are passed on as they are.

    Args:
        given: in order of precedence, the strongest last.
        entry: the script that runs.
        fields: names of that script's config.
    """
    result = Translated()
    values = {one.name: one.raw for one in given}
    names = names_of(entry)
    for one in given:
        rule = None if one.name in fields else names.get(one.name)
        elsewhere = _belongs_elsewhere(one, rule, entry)
        if elsewhere:
            result.problems.append(elsewhere)
        elif isinstance(rule, Renamed):
            _rename(one, rule, values, result)
        elif isinstance(rule, Stale):
            if not is_neutral(_plain(one.raw), rule.neutral):
                result.notices.append(f"{one.display_name()} has no effect: {rule.why}.")
        elif isinstance(rule, Refused):
            if not is_neutral(_plain(one.raw), rule.neutral):
                result.problems.append(f"{one.display_name()} = {_shown(one.raw)} is not offered: {rule.why}.")
        else:
            result.given.append(one)
    return result


def _belongs_elsewhere(one: RawValue, rule: Renamed | Stale | Refused | None, entry: Entry) -> str:
    """What to say where a key, or what it is called today, is the other script's; else ""."""
    if entry == "pretrain":
        there = one.name in FINETUNE_ONLY or one.name in FINETUNE_NAMES
        return (
            f"{one.display_name()} belongs to {SCRIPTS['finetune']}, not to {SCRIPTS[entry]}: remove it here."
            if there
            else ""
        )
    name = rule.new if isinstance(rule, Renamed) else one.name
    if name not in PRETRAIN_ONLY or (isinstance(rule, Renamed) and _asks_for_nothing(one, rule)):
        return ""
    return f"{one.display_name()} belongs to {SCRIPTS['pretrain']}, not to {SCRIPTS[entry]}: remove it here; {PRETRAIN_ONLY[name]}."


def _asks_for_nothing(one: RawValue, rule: Renamed) -> bool:
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
                f"{one.display_name()} is counted with --{rule.plus}, which is missing: give it, or {rule.new}."
            )
            return
        except (TypeError, ValueError):
            result.problems.append(f"{one.display_name()} = {_shown(one.raw)}: expected a whole number.")
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
