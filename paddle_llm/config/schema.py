"""JSON Schemas of config files, for editors. `python -m paddle_llm.config.schema` writes one per script into configs/.

Editors complete and check a config that begins with `"$schema": "../schema.json"`. The reader accepts slightly more than the
schema (numbers as strings, yes and no), so that old files still run.
"""

from __future__ import annotations

import json
from collections.abc import Container
from pathlib import Path
from typing import Any

from paddle_llm.config.defaults import entry_defaults
from paddle_llm.config.help import SCHEMAS
from paddle_llm.config.legacy.kinds import Ignored, Refused, Renamed
from paddle_llm.config.legacy.translate import names_of
from paddle_llm.config.parsing.values import WORD_LISTS
from paddle_llm.config.run_config import RunConfig, fields_of

_TITLES = {"pretrain": "paddle_llm pretraining", "finetune": "paddle_llm fine-tuning"}


def build_schema(entry: str = "pretrain") -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of a config of `entry` ("pretrain" or "finetune")."""
    everything = RunConfig.model_json_schema()["properties"]
    fields = {name: dict(everything[name]) for name in fields_of(entry)}
    for name, default in entry_defaults(entry, {}).items():
        fields[name]["default"] = default.value
    properties: dict[str, Any] = {"$schema": {"type": "string", "description": "Path of this schema."}}
    properties |= {name: _field(name, definition) for name, definition in fields.items()}
    for name, rule in names_of(entry).items():
        old = _old_name(rule, fields)
        if old is not None:
            properties[name] = {**old, "deprecated": True}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": _TITLES[entry],
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
    }


def _field(name: str, definition: dict[str, Any]) -> dict[str, Any]:
    shared = {key: definition[key] for key in ("description", "default") if key in definition}
    options = [option for option in definition.get("anyOf", [definition]) if option.get("type") != "null"]
    kinds = [_kind(option) for option in options]
    if name in WORD_LISTS or name == "report_to":
        kinds = [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]
    return {**shared, "anyOf": [*kinds, {"type": "null"}]}


def _kind(option: dict[str, Any]) -> dict[str, Any]:
    if option.get("type") == "boolean":
        return {"enum": [True, False, 0, 1]}
    return {key: value for key, value in option.items() if key not in ("title", "description", "default", "path")}


def _old_name(rule: Renamed | Ignored | Refused, fields: Container[str]) -> dict[str, Any] | None:
    """Return the definition of an old name; None if no value of it is accepted."""
    if isinstance(rule, Renamed):
        return {"description": f"Old name of {rule.new}."} if rule.new in fields else None
    if isinstance(rule, Ignored):
        return {"description": f"Has no effect: {rule.why}."}
    if not rule.neutral:
        return None
    values = [*rule.neutral, *([0] if False in rule.neutral else []), None]
    return {"description": f"Not supported: {rule.reason_and_remedy}.", "enum": values}


def schema_text(entry: str = "pretrain") -> str:
    """Return the content of the schema file."""
    return json.dumps(build_schema(entry), indent=2) + "\n"


if __name__ == "__main__":
    for script, path in SCHEMAS.items():
        Path(path).write_text(schema_text(script), encoding="utf-8")
