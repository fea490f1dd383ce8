"""Instruction data as one record, `Conversation`, and a reader for each format that people have it in.

A format is recognised by the keys of a row. A reader turns a row into turns or raises `BadRow` with a reason that does not
name the row, so that reasons can be counted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from paddle_llm.config.errors import UserError

SYSTEM, USER, ASSISTANT, TOOL = "system", "user", "assistant", "tool"
# As ShareGPT, OpenAI, SWIFT and ChatGLM3 spell them.
ROLES = {"system": SYSTEM, "developer": SYSTEM, "human": USER, "user": USER, "gpt": ASSISTANT, "assistant": ASSISTANT}
ROLES |= {
    "chatgpt": ASSISTANT,
    "bot": ASSISTANT,
    "model": ASSISTANT,
    "tool": TOOL,
    "observation": TOOL,
    "function": TOOL,
}
_TASK_KEYS = ("task", "task_name", "dataset")
_LANGUAGE_KEYS = ("language", "lang")


class BadRow(Exception):
    """A row that holds no conversation; the message is the reason."""


@dataclass(frozen=True)
class Turn:
    """One message of a conversation.

    Attributes:
        role: SYSTEM, USER, ASSISTANT or TOOL.
        content: The text.
        bears_loss: The loss flag of the data; None if the data has none.
        input: The second field of an alpaca instruction, which only the alpaca template sets apart.
        fields: Further keys of the message as a Jinja template sees them: tool_calls, reasoning_content, name, tool_call_id.
    """

    role: str
    content: str
    bears_loss: bool | None = None
    input: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def text(self) -> str:
        """content and input, as every template but alpaca's has them."""
        return f"{self.content}\n{self.input}" if self.input else self.content


@dataclass(frozen=True)
class Round:
    """What is asked (a user's turn, or tools' replies) and the answer; None: the answer that is to be generated."""

    asked: tuple[Turn, ...]
    answer: Turn | None


@dataclass(frozen=True)
class Conversation:
    """One sample before any template.

    Attributes:
        turns: The messages in order.
        where: File and line, for messages.
        fields: Further variables of a Jinja template that the row brings: tools, documents.
    """

    turns: tuple[Turn, ...]
    task: str = ""
    language: str = ""
    where: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def system(self) -> str:
        """The system turn's text; empty without one."""
        return self.turns[0].content if self.turns and self.turns[0].role == SYSTEM else ""

    def rounds(self) -> list[Round]:
        """The turns after the system's, cut behind each answer."""
        rounds: list[Round] = []
        asked: list[Turn] = []
        for turn in self.turns:
            if turn.role == ASSISTANT:
                rounds.append(Round(tuple(asked), turn))
                asked = []
            elif turn.role != SYSTEM:
                asked.append(turn)
        return [*rounds, Round(tuple(asked), None)] if asked else rounds

    def without_first_round(self) -> Conversation:
        """The same without its oldest question and all that answers it; the last round always stays."""
        starts = [i for i, turn in enumerate(self.turns) if turn.role == USER]
        if len(starts) < 2:
            return self
        return replace(self, turns=(*self.turns[: starts[0]], *self.turns[starts[1] :]))

    def prompt(self) -> Conversation:
        """The same without the last answer."""
        return replace(self, turns=self.turns[:-1]) if self.turns[-1].role == ASSISTANT else self


Row = Mapping[str, Any]


@dataclass(frozen=True)
class Format:
    """required: the keys that tell it; example: for messages."""

    required: tuple[str, ...]
    read: Callable[[Row], list[Turn]]
    example: str


def _text(row: Row, key: str, may_be_empty: bool = False) -> str:
    if key not in row:
        raise BadRow(f"has no key {key!r}")
    value = row[key]
    if not isinstance(value, str):
        raise BadRow(f"{key!r} holds {'nothing' if value is None else type(value).__name__}, not text")
    if not value.strip() and not may_be_empty:
        raise BadRow(f"{key!r} is empty")
    return value


def _system(row: Row) -> list[Turn]:
    context = row.get("context")
    system = row.get("system") or (context.get("system") if isinstance(context, dict) else None)
    if system is not None and not isinstance(system, str):
        raise BadRow(f"'system' holds {type(system).__name__}, not text")
    return [Turn(SYSTEM, system)] if system else []


def _history(row: Row) -> list[Turn]:
    """Rounds before the last one: [[question, answer], ...]."""
    turns = []
    for pair in row.get("history") or []:
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not all(isinstance(x, str) and x for x in pair):
            raise BadRow("'history' is no list of [question, answer]")
        turns += [Turn(USER, pair[0]), Turn(ASSISTANT, pair[1])]
    return turns


def _read_src_tgt(row: Row) -> list[Turn]:
    lists = [isinstance(row.get(key), list) for key in ("src", "tgt")]
    if not any(lists):
        return [*_system(row), Turn(USER, _text(row, "src", may_be_empty=True)), Turn(ASSISTANT, _text(row, "tgt"))]
    if not all(lists) or len(row["src"]) != len(row["tgt"]) or not row["src"]:
        raise BadRow("'src' and 'tgt' are not lists of the same length")
    turns = _system(row)
    for source, target in zip(row["src"], row["tgt"], strict=True):
        turns.append(Turn(USER, _text({"src": source}, "src", may_be_empty=True)))
        turns.append(Turn(ASSISTANT, _text({"tgt": target}, "tgt")))
    return turns


def _read_pair(question: str, answer: str) -> Callable[[Row], list[Turn]]:
    def read(row: Row) -> list[Turn]:
        asked = Turn(USER, _text(row, question, may_be_empty=question == "inputs"))
        return [*_system(row), *_history(row), asked, Turn(ASSISTANT, _text(row, answer))]

    return read


def _read_alpaca(row: Row) -> list[Turn]:
    further = _text(row, "input", may_be_empty=True) if row.get("input") is not None else ""
    asked = Turn(USER, _text(row, "instruction"), input=further)
    return [*_system(row), *_history(row), asked, Turn(ASSISTANT, _text(row, "output"))]


def _read_messages(key: str) -> Callable[[Row], list[Turn]]:
    def read(row: Row) -> list[Turn]:
        messages = row.get(key)
        if not isinstance(messages, list) or not messages:
            raise BadRow(f"{key!r} is no list of messages")
        turns = [_read_message(message) for message in messages]
        return turns if turns[0].role == SYSTEM else [*_system(row), *turns]

    return read


def _read_message(message: Any) -> Turn:
    if not isinstance(message, dict):
        raise BadRow("a message is no object")
    name = message.get("from", message.get("role"))
    if name not in ROLES:
        raise BadRow(f"the role {name!r} is none of {', '.join(ROLES)}")
    content = message.get("value", message.get("content"))
    if isinstance(content, list):  # OpenAI's list of parts
        if not all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in content):
            raise BadRow("a message holds more than text")
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str):
        tools = " (tool calls as objects are not offered: write them as text)" if message.get("tool_calls") else ""
        raise BadRow(f"a message's content holds {'nothing' if content is None else type(content).__name__}{tools}")
    role = ROLES[name]
    flag = message.get("loss", message.get("weight"))
    if flag is not None and flag not in (0, 1):
        raise BadRow("'loss' (or 'weight') is neither true (1) nor false (0)")
    if flag and role != ASSISTANT:
        raise BadRow(f"asks for loss on a turn of the {role}, which is no answer")
    return Turn(role, content, None if flag is None else bool(flag))


FORMATS = {
    "src_tgt": Format(("src", "tgt"), _read_src_tgt, '{"src": "...", "tgt": "..."}, or lists for several turns'),
    "content_summary": Format(("content", "summary"), _read_pair("content", "summary"), '{"content", "summary"}'),
    "alpaca": Format(("instruction", "output"), _read_alpaca, '{"instruction", "input", "output"[, "system", "history"]}'),
    "sharegpt": Format(("conversations",), _read_messages("conversations"), '{"conversations": [{"from", "value"}]}'),
    "messages": Format(("messages",), _read_messages("messages"), '{"messages": [{"role", "content"[, "loss"]}]}'),
    "prompted": Format(("inputs", "targets"), _read_pair("inputs", "targets"), '{"inputs", "targets"[, "task", "language"]}'),
    "query_response": Format(
        ("query", "response"), _read_pair("query", "response"), '{"query", "response"[, "system", "history"]}'
    ),
}  # fmt: skip


def recognise(rows: list[Row], where: str) -> str:
    """The name of the format of the first of `rows` that has one.

    Raises:
        UserError: no format's keys are there, or those of several.
    """
    for row in rows:
        matches = [name for name, known in FORMATS.items() if all(key in row for key in known.required)]
        if len(matches) > 1:
            keys = ", ".join("+".join(FORMATS[name].required) for name in matches)
            raise UserError(
                f"{where}: could be {' or '.join(matches)} (it has {keys}). Say which with --data_format {matches[0]}."
            )
        if matches:
            return matches[0]
    found = ", ".join(rows[0]) if rows else "no rows"
    raise UserError(f"{where}: no known format; its keys are: {found}. Known are\n{known_formats()}\n{_WAYS_ON}")


_WAYS_ON = "Rename the keys, or turn the columns into inputs and targets with a file of templates (--prompt_templates)."


def known_formats() -> str:
    """One line per format."""
    return "\n".join(f"  {name}: {known.example}" for name, known in FORMATS.items())


def read_row(row: Any, format_name: str, where: str = "") -> Conversation:
    """A row in a known format as a conversation.

    Raises:
        BadRow: with the reason.
    """
    if not isinstance(row, dict):
        raise BadRow(f"is a JSON {type(row).__name__}, not an object")
    turns = FORMATS[format_name].read(row)
    _check_order(turns)
    task, language = (_first(row, keys) for keys in (_TASK_KEYS, _LANGUAGE_KEYS))
    return Conversation(tuple(turns), task, language, where)


def _first(row: Row, keys: tuple[str, ...]) -> str:
    return next((str(row[key]) for key in keys if row.get(key)), "")


def _check_order(turns: list[Turn]) -> None:
    """[system,] then questions and answers by turns (a tool's reply counts as a question), an answer last."""
    spoken = turns[1:] if turns and turns[0].role == SYSTEM else turns
    if not spoken or spoken[0].role != USER:
        raise BadRow("does not start with the user")
    for before, turn in zip(spoken, spoken[1:], strict=False):
        if turn.role == SYSTEM:
            raise BadRow("has a system turn that is not the first")
        if turn.role == before.role != TOOL:
            raise BadRow(f"has two turns of the {turn.role} in a row")
        if turn.role == TOOL and before.role == USER or turn.role == USER and before.role == TOOL:
            raise BadRow("has a tool's turn without the assistant's before and after it")
    if spoken[-1].role != ASSISTANT:
        raise BadRow(f"ends with a turn of the {spoken[-1].role}: there is no answer to learn")
    if any(turn.role == ASSISTANT and not turn.content.strip() for turn in spoken):
        raise BadRow("has an empty answer")
