"""Reads lists of messages as turns, as written by OpenAI, TRL, ShareGPT, LLaMA-Factory and ms-swift.

Each key of a message is used, passed to the chat template, rejected, or counted as ignored.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from paddle_llm.core.json_files import parse_json
from paddle_llm.data.instructions.conversation import ASSISTANT, ROLES, SYSTEM, TOOL, USER, BadRow, Turn
from paddle_llm.data.json_types import describe_type

# Keys that are passed to the chat template, as by `apply_chat_template`.
MESSAGE_FIELDS = ("tool_calls", "reasoning_content", "thinking", "reasoning", "name", "tool_call_id")
# Loss flags: OpenAI's weight, ours and ms-swift's loss, axolotl's train, training and train_on_turn.
_FLAGS = ("loss", "weight", "train", "training", "train_on_turn")
_USED = {"role", "from", "content", "value", "function_call", *_FLAGS, *MESSAGE_FIELDS}
# Keys that change what should be trained and that no format can express.
MULTIMODAL = ("image", "images", "video", "videos", "audio", "audios", "image_url", "objects")
_REFUSED = {
    **dict.fromkeys(MULTIMODAL, "multimodal data is not supported"),
    **dict.fromkeys(
        ("loss_scale", "loss_mask", "mask", "masked", "training_detail", "train_detail"),
        "use loss 0 or 1 for each message",
    ),
}
_CALL_ROLES = ("function_call", "tool_call")
_QUESTION_ANSWER_KEYS = (
    ("human", "assistant"),
    ("input", "output"),
    ("user", "assistant"),
    ("query", "response"),
    ("prompt", "response"),
)


@dataclass
class Notes:
    """Counts of what is reported about the rows of a file.

    Attributes:
        ignored: Counts of keys of rows and messages that have no effect.
        calls_as_text: Number of messages whose role marks a tool call written as text.
    """

    ignored: Counter[str] = field(default_factory=Counter)
    calls_as_text: int = 0

    def add(self, other: Notes) -> None:
        """Add the counts of one row."""
        self.ignored.update(other.ignored)
        self.calls_as_text += other.calls_as_text


def parse_value(value: object, key: str, kind: type[list[Any] | dict[str, Any]]) -> Any:
    """Return a list or object, which a column may also contain as JSON text.

    Args:
        value: The value.
        key: Its key, for messages.
        kind: Required type: list or dict.

    Raises:
        BadRow: If the value has another type.
    """
    if isinstance(value, str):
        try:
            value = parse_json(value)
        except (ValueError, RecursionError):
            raise BadRow(f"{key!r} is text that is not JSON") from None
    if not isinstance(value, kind):
        raise BadRow(f"{key!r} is {describe_type(value)}, not {describe_type(kind())}")
    return value


def parse_object(value: object) -> Any:
    """Parse a list item that is the JSON text of an object (as `datasets` 5 writes mixed objects); return others as is."""
    if isinstance(value, str) and value[:1] == "{":
        try:
            found = parse_json(value)
        except (ValueError, RecursionError):
            return value
        return found if isinstance(found, dict) else value
    return value


def read_messages(value: object, key: str, notes: Notes) -> list[Turn]:
    """Return the turns of a list of messages, of pairs of question and answer, or of alternating texts.

    Args:
        value: The list, or its JSON text.
        key: Key of the list, for messages.
        notes: Counts that are updated.

    Raises:
        BadRow: If the value is not such a list.
    """
    messages = parse_value(value, key, list)
    if not messages:
        raise BadRow(f"{key!r} is an empty list")
    messages = [parse_object(message) for message in messages]
    if all(isinstance(message, str) for message in messages):
        return [Turn((USER, ASSISTANT)[number % 2], _nonempty(text)) for number, text in enumerate(messages)]
    turns: list[Turn] = []
    for message in messages:
        if not isinstance(message, Mapping):
            raise BadRow(f"a message is {describe_type(message)}, not an object")
        # If rows of several schemas were merged, every message has the keys of all, and most of them are null.
        message = {name: item for name, item in message.items() if item is not None}
        pair = None if {"role", "from"} & set(message) else _question_answer_keys(message)
        turns += _read_pair(message, pair, notes) if pair else [read_message(message, notes)]
    return turns


def _nonempty(text: str) -> str:
    if not text.strip():
        raise BadRow("a message is empty")
    return text


def _question_answer_keys(message: Mapping[str, Any]) -> tuple[str, str] | None:
    return next((pair for pair in _QUESTION_ANSWER_KEYS if set(pair) <= set(message)), None)


def _read_pair(message: Mapping[str, Any], pair: tuple[str, str], notes: Notes) -> list[Turn]:
    """Return the turns of an object with a question, an answer and an optional system text (ms-swift, XTuner)."""
    texts = [message[key] for key in pair]
    system = message.get("system") or ""
    if not all(isinstance(text, str) for text in (*texts, system)):
        raise BadRow(f"a message has no text for {' and '.join(pair)}")
    _ignore(message, {*pair, "system"}, notes)
    start = [Turn(SYSTEM, system)] if system else []
    return [*start, Turn(USER, texts[0]), Turn(ASSISTANT, texts[1])]


def read_message(message: Mapping[str, Any], notes: Notes) -> Turn:
    """Return a message without null keys as a turn.

    Raises:
        BadRow: If the message is not valid.
    """
    role = read_role(message)
    calls = _tool_calls(message)
    content = _content(message, may_be_absent=role == ASSISTANT and bool(calls))
    fields = {key: message[key] for key in MESSAGE_FIELDS if key in message and key != "tool_calls"}
    if calls:
        if role != ASSISTANT:
            raise BadRow(f"a {role} message has tool calls")
        fields["tool_calls"] = calls
    _ignore(message, _USED, notes)
    if is_call(message) and not calls:
        notes.calls_as_text += 1
        fields |= _calls_of_text(content)
    return Turn(role, content, _flag(message, role), fields=fields)


def read_role(message: Mapping[str, Any]) -> str:
    """Return the role of a message; case is ignored.

    Raises:
        BadRow: If the role is unknown.
    """
    name = message.get("role", message.get("from"))
    role = ROLES.get(name.strip().lower()) if isinstance(name, str) else None
    if role is None:
        raise BadRow(f"unknown role {name!r}; known are {', '.join(ROLES)}")
    return role


def is_call(message: Mapping[str, Any]) -> bool:
    """Return whether the role of a message marks it as a tool call written as text."""
    name = message.get("role", message.get("from"))
    return isinstance(name, str) and name.strip().lower() in _CALL_ROLES


def _content(message: Mapping[str, Any], may_be_absent: bool) -> str:
    content = message.get("content", message.get("value"))
    if isinstance(content, list):  # OpenAI's list of parts
        if len(content) > 1 and any(isinstance(part, str) for part in content):
            raise BadRow("the content of a message is a list of texts; join them")
        texts: list[Any] = [part.get("text") if isinstance(part, Mapping) else part for part in content]
        kinds = {part.get("type", "text") for part in content if isinstance(part, Mapping)}
        if not all(isinstance(text, str) for text in texts) or kinds - {"text", "input_text", "output_text"}:
            others = ", ".join(sorted(map(repr, kinds - {"text", "input_text", "output_text"})))
            raise BadRow(f"a message has parts that are not text ({others or 'without text'}), which are not supported")
        content = "".join(texts)
    if content is None and may_be_absent:
        return ""
    if isinstance(content, dict) and is_call(message):
        return json.dumps(content, ensure_ascii=False)
    if not isinstance(content, str):
        raise BadRow(f"the content of a message is {describe_type(content)}, not text")
    return content


def _calls_of_text(text: str) -> dict[str, Any]:
    """Return the fields of a text that is one or more tool calls in JSON (LLaMA-Factory, ms-swift); else {}."""
    try:
        found = parse_json(text)
    except (ValueError, RecursionError):
        return {}
    found = found if isinstance(found, list) else [found]
    if not found or not all(isinstance(call, dict) and isinstance(call.get("name"), str) for call in found):
        return {}
    functions = [
        {**call, "arguments": parse_object(call["arguments"])} if "arguments" in call else call for call in found
    ]
    return {"content": "", "tool_calls": [{"type": "function", "function": function} for function in functions]}


def _tool_calls(message: Mapping[str, Any]) -> list[Any]:
    calls = parse_value(message["tool_calls"], "tool_calls", list) if "tool_calls" in message else []
    if "function_call" in message:  # OpenAI's older form
        function = parse_value(message["function_call"], "function_call", dict)
        calls = [*calls, {"type": "function", "function": function}]
    calls = [parse_object(call) for call in calls]
    if not all(isinstance(call, Mapping) for call in calls):
        raise BadRow("'tool_calls' is not a list of objects")
    return calls


def _flag(message: Mapping[str, Any], role: str) -> bool | None:
    flags = {key: message[key] for key in _FLAGS if key in message}
    if any(not isinstance(flag, bool | int | float) or flag not in (0, 1) for flag in flags.values()):
        raise BadRow("'loss' (or 'weight') is not true, false, 1 or 0")
    values = {bool(flag) for flag in flags.values()}
    if len(values) > 1:
        raise BadRow(f"{' and '.join(map(repr, flags))} of a message contradict each other")
    if values == {True} and role != ASSISTANT:
        raise BadRow(f"a {role} message has a loss flag; only answers can have a loss")
    return values.pop() if values else None


def _ignore(message: Mapping[str, Any], used: set[str], notes: Notes) -> None:
    """Count the keys that have no effect.

    Raises:
        BadRow: If such a key would change what is trained.
    """
    for key, value in message.items():
        if key in used or (isinstance(value, list | dict | str) and not value):
            continue
        if key in _REFUSED:
            raise BadRow(f"a message has the key {key!r}: {_REFUSED[key]}")
        notes.ignored[f"{key} of messages"] += 1


# ---- order -----------------------------------------------------------------------------------------------------------


def check_order(turns: list[Turn]) -> None:
    """Check that turns begin with a question and end with an answer, without a system turn in between.

    Raises:
        BadRow: If they do not.
    """
    dialog = turns[1:] if turns and turns[0].role == SYSTEM else turns
    if any(turn.role == SYSTEM for turn in dialog):
        raise BadRow("a system turn is not the first turn")
    if not dialog or dialog[0].role != USER:
        raise BadRow("the first turn is not a user turn")
    for before, turn in zip(dialog, dialog[1:], strict=False):
        if turn.role == TOOL and before.role == USER:
            raise BadRow("a tool turn does not follow an assistant turn")
    if dialog[-1].role != ASSISTANT:
        raise BadRow(f"the last turn is a {dialog[-1].role} turn: there is no answer to train")
    if any(
        turn.role == ASSISTANT and not turn.content.strip() and not turn.fields.get("tool_calls") for turn in dialog
    ):
        raise BadRow("an answer is empty")


def irregular_order(turns: tuple[Turn, ...]) -> str:
    """Return why turns are not alternating questions and answers; empty if they are. A tool's reply is a question.

    Chat templates of models can write other orders; the built-in templates cannot.
    """
    if any(turn.role == ASSISTANT and not turn.content.strip() for turn in turns):
        return "tool calls have no text"
    for before, turn in zip(turns, turns[1:], strict=False):
        if turn.role == before.role != TOOL:
            return f"there are two {turn.role} turns in a row"
        if turn.role == USER and before.role == TOOL:
            return "no assistant turn follows a tool turn"
    return ""


def check_text(value: object) -> None:
    r"""Check that all texts of a value can be encoded as UTF-8.

    Raises:
        BadRow: If a text contains a lone surrogate, such as JSON's \ud83d without its second half.
    """
    if isinstance(value, str):
        if not value.isascii():
            try:
                value.encode("utf-8")
            except UnicodeEncodeError as error:
                code = f"\\u{ord(value[error.start]):04x}"
                raise BadRow(f"half of a character (lone surrogate {code})") from None
    elif isinstance(value, Mapping):
        for name, item in value.items():
            check_text(name)
            check_text(item)
    elif isinstance(value, list | tuple):
        for item in value:
            check_text(item)
