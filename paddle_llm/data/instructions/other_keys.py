"""Handles keys of a row outside its format: variables of the chat template, rejected keys, keys without effect."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from paddle_llm.core.errors import UserError
from paddle_llm.data.instructions.conversation import BadRow
from paddle_llm.data.instructions.json_rows import RowValue
from paddle_llm.data.instructions.messages import MULTIMODAL, Notes, parse_object, parse_value

SYSTEMS = ("system", "system_prompt", "system_message")
_FIELDS = ("tools", "functions", "documents", "chat_template_kwargs")
# Keys that change what should be trained. A format that does not use one rejects a row in which it is not empty.
_MEANINGFUL = {
    **dict.fromkeys(MULTIMODAL, "multimodal data is not supported"),
    "loss_scale": "use `loss` 0 or 1 for each message",
    "loss": "use `loss` for each message",
    "weight": "rows cannot be weighted; use `weight` for each message, or mix files by weight",
}
_PARTS_OF_QUESTION = ("input", "context", "history")
_LISTS = ("messages", "conversations", "conversation")
_PREFERENCES = ("chosen", "rejected", "rejected_response", "rejected_messages", "kto_tag")


def template_fields(row: RowValue) -> dict[str, Any]:
    """Return the variables of a row for a chat template: tools, documents, and those of TRL's chat_template_kwargs.

    Raises:
        BadRow: If tools, functions or documents are not lists of objects.
    """
    fields: dict[str, Any] = {}
    tools = parse_value(row["tools"], "tools", list) if row.get("tools") not in (None, "", "null", "None") else []
    if row.get("functions"):  # OpenAI's older form
        functions = [parse_object(one) for one in parse_value(row["functions"], "functions", list)]
        tools = [*tools, *({"type": "function", "function": function} for function in functions)]
    tools = [parse_object(tool) for tool in tools]
    if not all(isinstance(tool, Mapping) for tool in tools):
        raise BadRow("'tools' is not a list of objects")
    if tools:
        fields["tools"] = tools
    if row.get("documents"):
        fields["documents"] = [parse_object(one) for one in parse_value(row["documents"], "documents", list)]
    if row.get("chat_template_kwargs"):
        further = parse_value(row["chat_template_kwargs"], "chat_template_kwargs", dict)
        fields |= {key: value for key, value in further.items() if value is not None}
    return fields


def reject_preferences(row: RowValue, where: str) -> None:
    """Reject preference data, which contains answers to avoid.

    Raises:
        UserError: If the row has the keys of such data.
    """
    found = [key for key in _PREFERENCES if row.get(key) is not None]
    is_verdict = row.get("label") in (0, 1) or str(row.get("label")).lower() in ("true", "false", "0", "1")
    if not found and is_verdict and ({"completion", "messages", "response"} & set(row)):
        found = ["label"]
    if not found and row.get("completions") is not None and row.get("labels") is not None:
        found = ["completions", "labels"]
    if found:
        raise UserError(
            f"{where}: preference data (keys {', '.join(found)}): it contains answers to avoid, but fine-tuning trains on "
            "every answer. Write the preferred answers as prompt and completion."
        )


def count_ignored(row: RowValue, used: set[str], format_name: str, notes: Notes) -> None:
    """Count the keys of a row that have no effect.

    Raises:
        BadRow: If such a key would change what is trained.
    """
    for key, value in row.items():
        if key in used or key in SYSTEMS or key in _FIELDS or (isinstance(value, list | dict | str) and not value):
            continue
        if key in ("loss", "weight") and value == 1:
            continue
        if key in _MEANINGFUL:
            raise BadRow(f"the row has the key {key!r}: {_MEANINGFUL[key]}")
        if key in _PARTS_OF_QUESTION and not used & set(_LISTS):
            raise BadRow(
                f"the row has the key {key!r}, which the format {format_name} does not use; add it to the question"
            )
        notes.ignored[str(key)] += 1
