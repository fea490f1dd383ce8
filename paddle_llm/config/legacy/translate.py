"""Translate the names in `paddlenlp.py` to current fields."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from paddle_llm.config.legacy.kinds import Ignored, Refused, Renamed, is_neutral
from paddle_llm.config.legacy.paddlenlp import FINETUNE_NAMES, OLD_NAMES, UNSUPPORTED_NAMES
from paddle_llm.config.parsing.arguments import BARE, RawValue, as_text
from paddle_llm.config.run_config import FINETUNE_ONLY, PRETRAIN_ONLY, SCRIPTS, Entry

KNOWN_NAMES: frozenset[str] = frozenset(OLD_NAMES) | frozenset(FINETUNE_NAMES) | frozenset(UNSUPPORTED_NAMES)


def names_of(entry: str) -> dict[str, Renamed | Ignored | Refused]:
    """Return all names that the script of `entry` accepts and that are not fields of it."""
    return {**OLD_NAMES, **UNSUPPORTED_NAMES, **(FINETUNE_NAMES if entry == "finetune" else {})}


@dataclass
class Translated:
    """Result of a translation.

    Attributes:
        given: Raw values under current names.
        problems: Messages about refused settings.
        notices: Messages about translated and ignored settings.
    """

    given: list[RawValue] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)


def translate(given: list[RawValue], entry: Entry, fields: frozenset[str] | set[str]) -> Translated:
    """Translate old names to current ones. Unknown keys are kept unchanged.

    Args:
        given: Raw values in ascending order of precedence.
        entry: Script that runs.
        fields: Names of the fields of that script.
    """
    result = Translated()
    values = {setting.name: setting.raw for setting in given}
    names = names_of(entry)
    for setting in given:
        rule = None if setting.name in fields else names.get(setting.name)
        wrong_script = _wrong_script(setting, rule, entry)
        if wrong_script:
            result.problems.append(wrong_script)
        elif isinstance(rule, Renamed):
            _rename(setting, rule, values, result)
        elif isinstance(rule, Ignored):
            if not is_neutral(_plain(setting.raw), rule.neutral):
                result.notices.append(f"{setting.display_name()} has no effect: {rule.why}.")
        elif isinstance(rule, Refused):
            if not is_neutral(_plain(setting.raw), rule.neutral):
                result.problems.append(
                    f"{setting.display_name()} = {as_text(setting.raw)} is not supported: {rule.reason_and_remedy}."
                )
        else:
            result.given.append(setting)
    return result


def _wrong_script(setting: RawValue, rule: Renamed | Ignored | Refused | None, entry: Entry) -> str:
    """Return a message if a key, or its translation, belongs to the other script; else ""."""
    if entry == "pretrain":
        if setting.name not in FINETUNE_ONLY and setting.name not in FINETUNE_NAMES:
            return ""
        return f"{setting.display_name()} belongs to {SCRIPTS['finetune']}, not to {SCRIPTS[entry]}. Remove it."
    name = rule.new if isinstance(rule, Renamed) else setting.name
    if name not in PRETRAIN_ONLY or (isinstance(rule, Renamed) and _requests_default(setting, rule)):
        return ""
    return f"{setting.display_name()} belongs to {SCRIPTS['pretrain']}, not to {SCRIPTS[entry]}. Remove it: {PRETRAIN_ONLY[name]}."


def _requests_default(setting: RawValue, rule: Renamed) -> bool:
    return rule.convert is not None and rule.convert(_plain(setting.raw)) is None


def _rename(setting: RawValue, rule: Renamed, values: dict[str, Any], result: Translated) -> None:
    raw = setting.raw
    if rule.convert is not None:
        raw = rule.convert(_plain(raw))
        if raw is None:
            return
    if rule.plus:
        try:
            raw = int(raw) + int(values[rule.plus])
        except KeyError:
            result.problems.append(
                f"{setting.display_name()} is added to --{rule.plus}, which is missing. Give --{rule.plus}, or --{rule.new} instead."
            )
            return
        except (TypeError, ValueError):
            result.problems.append(
                f"{setting.display_name()} = {as_text(setting.raw)} is not a whole number. Give a number of tokens, such as 128."
            )
            return
    result.given.append(replace(setting, name=rule.new, raw=raw, old=setting.name))
    if setting.is_flag:
        result.notices.append(f"--{setting.name} {as_text(setting.raw)} is read as --{rule.new} {as_text(raw)}")
    else:
        result.notices.append(
            f'{setting.display_name()}: {as_text(setting.raw)} is read as "{rule.new}": {as_text(raw)}'
        )


def _plain(raw: Any) -> Any:
    return True if raw is BARE else raw
