"""Lists of messages as turns: OpenAI's, TRL's, ShareGPT's, LLaMA-Factory's and ms-swift's ways to write them.

Keys of a message are used, or passed on to the chat template, or refused, or counted as ignored; none is dropped without a report.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from paddle_llm.core.json_files import parse_json
from paddle_llm.data.instructions.conversation import ASSISTANT, ROLES, SYSTEM, TOOL, USER, BadRow, Turn

# Keys that a chat template sees, as `apply_chat_template` passes them.
MESSAGE_FIELDS = ("tool_calls", "reasoning_content", "thinking", "reasoning", "name", "tool_call_id")
# Loss flags: OpenAI's weight, ours and ms-swift's loss, axolotl's train, training and train_on_turn.
_FLAGS = ("loss", "weight", "train", "training", "train_on_turn")
_USED = {"role", "from", "content", "value", "function_call", *_FLAGS, *MESSAGE_FIELDS}
# Keys that change what is to be learned, and that no format expresses.
MULTIMODAL = ("image", "images", "video", "videos", "audio", "audios", "image_url", "objects")
_REFUSED = {
    **dict.fromkeys(MULTIMODAL, "multimodal data is not supported"),
    **dict.fromkeys(
        ("loss_scale", "loss_mask", "mask", "masked", "training_detail", "train_detail"),
        "give loss 0 or 1 for each message",
    ),
}
_CALL_ROLES = ("function_call", "tool_call")
_PAIRS = (
    ("human", "assistant"),
    ("input", "output"),
    ("user", "assistant"),
    ("query", "response"),
    ("prompt", "response"),
)


@dataclass
class Notes:
    """What is reported about the rows of a file.

    Attributes:
        ignored: Counts of keys of rows and of messages that have no effect.
        calls_as_text: Number of messages whose role marks a tool call written as text.
    """

    ignored: Counter[str] = field(default_factory=Counter)
    calls_as_text: int = 0

    def add(self, other: Notes) -> None:
        """Add the counts of one row."""
        self.ignored.update(other.ignored)
        self.calls_as_text += other.calls_as_text


def parsed(value: Any, key: str, *kinds: type) -> Any:
    """A list or object, also one that a column holds as JSON text.

    Raises:
        BadRow: If it is neither.
    """
    if isinstance(value, str):
        try:
            value = parse_json(value)
        except (ValueError, RecursionError):
            raise BadRow(f"{key!r} holds text that is not JSON") from None
    if not isinstance(value, kinds):
        raise BadRow(f"{key!r} holds {type(value).__name__}, not {' or '.join(kind.__name__ for kind in kinds)}")
    return value


def unpacked(value: Any) -> Any:
    """The object that an item of a list holds as JSON text, as `datasets` 5 writes objects of different keys; else the item."""
    if isinstance(value, str) and value[:1] == "{":
        try:
            found = parse_json(value)
        except (ValueError, RecursionError):
            return value
        return found if isinstance(found, dict) else value
    return value


def read_messages(value: Any, key: str, notes: Notes) -> list[Turn]:
    """Turns of a list of messages, of pairs of a question and an answer, or of texts in turn.

    Args:
        value: The list, or its JSON text.
        key: The key that holds it, for messages.
        notes: Counts what is to be reported.

    Raises:
        BadRow: If it is not such a list.
    """
    messages = parsed(value, key, list)
    if not messages:
        raise BadRow(f"{key!r} is an empty list")
    messages = [unpacked(message) for message in messages]
    if all(isinstance(message, str) for message in messages):
        return [Turn((USER, ASSISTANT)[number % 2], _checked(text)) for number, text in enumerate(messages)]
    turns: list[Turn] = []
    for message in messages:
        if not isinstance(message, Mapping):
            raise BadRow(f"a message is not an object but {type(message).__name__}")
        # Where rows of several schemas were joined, every message has the keys of all, most of them null.
        message = {name: item for name, item in message.items() if item is not None}
        pair = None if {"role", "from"} & set(message) else _pair(message)
        turns += _read_pair(message, pair, notes) if pair else [read_message(message, notes)]
    return turns


def _checked(text: str) -> str:
    if not text.strip():
        raise BadRow("a message is empty")
    return text


def _pair(message: Mapping[str, Any]) -> tuple[str, str] | None:
    return next((pair for pair in _PAIRS if set(pair) <= set(message)), None)


def _read_pair(message: Mapping[str, Any], pair: tuple[str, str], notes: Notes) -> list[Turn]:
    """The turns of an object with a question and an answer, and a system text (ms-swift, XTuner)."""
    texts = [message[key] for key in pair]
    system = message.get("system") or ""
    if not all(isinstance(text, str) for text in (*texts, system)):
        raise BadRow(f"a message holds something other than text for {' and '.join(pair)}")
    _ignore(message, {*pair, "system"}, notes)
    start = [Turn(SYSTEM, system)] if system else []
    return [*start, Turn(USER, texts[0]), Turn(ASSISTANT, texts[1])]


def read_message(message: Mapping[str, Any], notes: Notes) -> Turn:
    """One message without null keys as a turn.

    Raises:
        BadRow: With the reason.
    """
    role = read_role(message)
    calls = _tool_calls(message)
    content = _content(message, may_be_absent=role == ASSISTANT and bool(calls))
    fields = {key: message[key] for key in MESSAGE_FIELDS if key in message and key != "tool_calls"}
    if calls:
        if role != ASSISTANT:
            raise BadRow(f"a message of the {role} has tool calls")
        fields["tool_calls"] = calls
    _ignore(message, _USED, notes)
    if is_call(message) and not calls:
        notes.calls_as_text += 1
        fields |= _calls_of_text(content)
    return Turn(role, content, _flag(message, role), fields=fields)


def read_role(message: Mapping[str, Any]) -> str:
    """The role of a message, whatever the capitals.

    Raises:
        BadRow: If it is unknown.
    """
    name = message.get("role", message.get("from"))
    role = ROLES.get(name.strip().lower()) if isinstance(name, str) else None
    if role is None:
        raise BadRow(f"the role {name!r} is not one of {', '.join(ROLES)}")
    return role


def is_call(message: Mapping[str, Any]) -> bool:
    """Whether a message is a tool call written as text, by its role."""
    name = message.get("role", message.get("from"))
    return isinstance(name, str) and name.strip().lower() in _CALL_ROLES


def _content(message: Mapping[str, Any], may_be_absent: bool) -> str:
    content = message.get("content", message.get("value"))
    if isinstance(content, list):  # OpenAI's list of parts
        if len(content) > 1 and any(isinstance(part, str) for part in content):
            raise BadRow("a message holds a list of texts; join them to one")
        texts = [part.get("text") if isinstance(part, Mapping) else part for part in content]
        kinds = {part.get("type", "text") for part in content if isinstance(part, Mapping)}
        if not all(isinstance(text, str) for text in texts) or kinds - {"text", "input_text", "output_text"}:
            others = ", ".join(sorted(map(repr, kinds - {"text", "input_text", "output_text"})))
            raise BadRow(f"a message holds parts other than text ({others or 'without text'}), which are not supported")
        content = "".join(texts)
    if content is None and may_be_absent:
        return ""
    if isinstance(content, dict) and is_call(message):
        return json.dumps(content, ensure_ascii=False)
    if not isinstance(content, str):
        raise BadRow(f"a message's content holds {'nothing' if content is None else type(content).__name__}, not text")
    return content


def _calls_of_text(text: str) -> dict[str, Any]:
    """Fields of a message whose text is one tool call, or a list of them, as JSON (LLaMA-Factory, ms-swift); empty for other text."""
    try:
        found = parse_json(text)
    except (ValueError, RecursionError):
        return {}
    found = found if isinstance(found, list) else [found]
    if not found or not all(isinstance(call, dict) and isinstance(call.get("name"), str) for call in found):
        return {}
    functions = [{**call, "arguments": unpacked(call["arguments"])} if "arguments" in call else call for call in found]
    return {"content": "", "tool_calls": [{"type": "function", "function": function} for function in functions]}


def _tool_calls(message: Mapping[str, Any]) -> list[Any]:
    calls = parsed(message["tool_calls"], "tool_calls", list) if "tool_calls" in message else []
    if "function_call" in message:  # OpenAI's form before tools
        calls = [*calls, {"type": "function", "function": parsed(message["function_call"], "function_call", dict)}]
    calls = [unpacked(call) for call in calls]
    if not all(isinstance(call, Mapping) for call in calls):
        raise BadRow("'tool_calls' is not a list of objects")
    return calls


def _flag(message: Mapping[str, Any], role: str) -> bool | None:
    flags = {key: message[key] for key in _FLAGS if key in message}
    if any(not isinstance(flag, bool | int | float) or flag not in (0, 1) for flag in flags.values()):
        raise BadRow("'loss' (or 'weight') is neither true (1) nor false (0)")
    values = {bool(flag) for flag in flags.values()}
    if len(values) > 1:
        raise BadRow(f"{' and '.join(map(repr, flags))} of a message contradict each other")
    if values == {True} and role != ASSISTANT:
        raise BadRow(f"asks for loss on a turn of the {role}, which is not an answer")
    return values.pop() if values else None


def _ignore(message: Mapping[str, Any], used: set[str], notes: Notes) -> None:
    """Count the keys that have no effect.

    Raises:
        BadRow: If such a key would change what is learned.
    """
    for key, value in message.items():
        if key in used or (isinstance(value, list | dict | str) and not value):
            continue
        if key in _REFUSED:
            raise BadRow(f"a message has {key!r}: {_REFUSED[key]}")
        notes.ignored[f"{key} of messages"] += 1


# ---- order -----------------------------------------------------------------------------------------------------------


def check_order(turns: list[Turn]) -> None:
    """Check that there is a question first and an answer last, and no system turn between.

    Raises:
        BadRow: With the reason.
    """
    spoken = turns[1:] if turns and turns[0].role == SYSTEM else turns
    if any(turn.role == SYSTEM for turn in spoken):
        raise BadRow("has a system turn that is not the first")
    if not spoken or spoken[0].role != USER:
        raise BadRow("does not start with the user")
    for before, turn in zip(spoken, spoken[1:], strict=False):
        if turn.role == TOOL and before.role == USER:
            raise BadRow("has a tool's turn without the assistant's before it")
    if spoken[-1].role != ASSISTANT:
        raise BadRow(f"ends with a turn of the {spoken[-1].role}: there is no answer to learn")
    if any(
        turn.role == ASSISTANT and not turn.content.strip() and not turn.fields.get("tool_calls") for turn in spoken
    ):
        raise BadRow("has an empty answer")


def irregular(turns: tuple[Turn, ...]) -> str:
    """Why turns are not questions and answers in turn (a tool's reply counts as a question); empty if they are.

    Chat templates of models write other orders too; the built-in templates cannot.
    """
    if any(turn.role == ASSISTANT and not turn.content.strip() for turn in turns):
        return "has tool calls without text"
    for before, turn in zip(turns, turns[1:], strict=False):
        if turn.role == before.role != TOOL:
            return f"has two turns of the {turn.role} in a row"
        if turn.role == USER and before.role == TOOL:
            return "has a tool's turn without the assistant's behind it"
    return ""


def check_text(value: Any) -> None:
    """Check that all texts of a value can be written as UTF-8.

    Raises:
        BadRow: If one holds a lone surrogate, as JSON's \\ud83d without its second half.
    """
    if isinstance(value, str):
        if not value.isascii():
            try:
                value.encode("utf-8")
            except UnicodeEncodeError as error:
                code = f"\\u{ord(value[error.start]):04x}"
                raise BadRow(f"holds half of a character (the lone surrogate {code})") from None
    elif isinstance(value, Mapping):
        for name, item in value.items():
            check_text(name)
            check_text(item)
    elif isinstance(value, list | tuple):
        for item in value:
            check_text(item)
