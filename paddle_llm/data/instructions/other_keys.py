"""Keys of a row beside those of its format: variables of the chat template, keys that are refused, keys that have no effect."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from paddle_llm.core.errors import UserError
from paddle_llm.data.instructions.conversation import BadRow
from paddle_llm.data.instructions.messages import MULTIMODAL, Notes, parsed, unpacked

Row = Mapping[str, Any]
SYSTEMS = ("system", "system_prompt", "system_message")
_FIELDS = ("tools", "functions", "documents", "chat_template_kwargs")
# Keys that change what is to be learned. A format that does not use one refuses a row in which it is not empty.
_MEANINGFUL = {
    **dict.fromkeys(MULTIMODAL, "multimodal data is not supported"),
    "loss_scale": "give `loss` 0 or 1 to each message",
    "loss": "give `loss` to each message",
    "weight": "rows are not weighted; give `weight` to each message, or mix files by weight",
}
_PARTS_OF_QUESTION = ("input", "context", "history")
_LISTS = ("messages", "conversations", "conversation")
_PREFERENCES = ("chosen", "rejected", "rejected_response", "rejected_messages", "kto_tag")


def template_fields(row: Row) -> dict[str, Any]:
    """The variables that a row gives to a chat template: tools, documents, and those of TRL's chat_template_kwargs.

    Raises:
        BadRow: If they are not lists of objects.
    """
    fields: dict[str, Any] = {}
    tools = parsed(row["tools"], "tools", list) if row.get("tools") not in (None, "", "null", "None") else []
    if row.get("functions"):  # OpenAI's form before tools
        functions = [unpacked(one) for one in parsed(row["functions"], "functions", list)]
        tools = [*tools, *({"type": "function", "function": function} for function in functions)]
    tools = [unpacked(tool) for tool in tools]
    if not all(isinstance(tool, Mapping) for tool in tools):
        raise BadRow("'tools' is not a list of objects")
    if tools:
        fields["tools"] = tools
    if row.get("documents"):
        fields["documents"] = [unpacked(one) for one in parsed(row["documents"], "documents", list)]
    if row.get("chat_template_kwargs"):
        further = parsed(row["chat_template_kwargs"], "chat_template_kwargs", dict)
        fields |= {key: value for key, value in further.items() if value is not None}
    return fields


def refuse_preferences(row: Row, where: str) -> None:
    """Refuse data of preferences, in which some answers are to be avoided.

    Raises:
        UserError: If the row has such keys.
    """
    found = [key for key in _PREFERENCES if row.get(key) is not None]
    is_verdict = row.get("label") in (0, 1) or str(row.get("label")).lower() in ("true", "false", "0", "1")
    if not found and is_verdict and ({"completion", "messages", "response"} & set(row)):
        found = ["label"]
    if not found and row.get("completions") is not None and row.get("labels") is not None:
        found = ["completions", "labels"]
    if found:
        raise UserError(
            f"{where}: preference data, with the keys {', '.join(found)}: some of its answers are to be avoided, but fine-tuning learns "
            "every answer. Write the preferred answers as prompt and completion."
        )


def count_ignored(row: Row, used: set[str], format_name: str, notes: Notes) -> None:
    """Count the keys of a row that have no effect.

    Raises:
        BadRow: If such a key would change what is learned.
    """
    for key, value in row.items():
        if key in used or key in SYSTEMS or key in _FIELDS or (isinstance(value, list | dict | str) and not value):
            continue
        if key in ("loss", "weight") and value == 1:
            continue
        if key in _MEANINGFUL:
            raise BadRow(f"has {key!r}: {_MEANINGFUL[key]}")
        if key in _PARTS_OF_QUESTION and not used & set(_LISTS):
            raise BadRow(f"has {key!r}: the format {format_name} does not use it; join it with the question")
        notes.ignored[str(key)] += 1
