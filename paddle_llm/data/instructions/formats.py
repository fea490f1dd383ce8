"""Formats of instruction rows: recognizes each by its keys and converts its rows to conversations.

Each key of a row is used, passed to the chat template, rejected, or counted as ignored. A null key counts as absent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from paddle_llm.core.errors import UserError
from paddle_llm.data.instructions.conversation import (
    ASSISTANT,
    SYSTEM,
    USER,
    BadRow,
    Conversation,
    Turn,
)
from paddle_llm.data.instructions.json_rows import RowValue
from paddle_llm.data.instructions.messages import Notes, check_order, check_text, parse_value, read_messages
from paddle_llm.data.instructions.other_keys import SYSTEMS, count_ignored, reject_preferences, template_fields
from paddle_llm.data.json_types import describe_type

_TASK_KEYS = ("task", "task_name", "dataset")
_LANGUAGE_KEYS = ("language", "lang")


@dataclass(frozen=True)
class Format:
    """A format of rows.

    Attributes:
        required: Keys by which it is recognized.
        read: Function that reads the turns of a row without null keys and counts ignored keys of messages.
        example: Example of a row, for messages.
        optional: Further keys that it uses.
        without: Keys that a row of this format does not have.
    """

    required: tuple[str, ...]
    read: Callable[[RowValue, Notes], list[Turn]]
    example: str
    optional: tuple[str, ...] = ()
    without: tuple[str, ...] = ()

    def matches(self, row: RowValue) -> bool:
        """Return whether a row has the keys of the format."""
        return all(row.get(key) is not None for key in self.required) and all(
            row.get(key) is None for key in self.without
        )


def _text(row: RowValue, key: str, may_be_empty: bool = False) -> str:
    if key not in row:
        raise BadRow(f"no key {key!r}")
    value = row[key]
    if not isinstance(value, str):
        raise BadRow(f"{key!r} is {describe_type(value)}, not text")
    if not value.strip() and not may_be_empty:
        raise BadRow(f"{key!r} is empty")
    return value


def _system(row: RowValue) -> list[Turn]:
    context = row.get("context")
    others = sorted(set(context) - {"system"}) if isinstance(context, dict) else []
    if others:
        raise BadRow(f"'context' has the keys {', '.join(map(str, others))}; only 'system' is supported")
    found = {key: row[key] for key in SYSTEMS if row.get(key) is not None}
    if isinstance(context, dict) and context.get("system") is not None:
        found["context"] = context["system"]
    for key, text in found.items():
        if not isinstance(text, str):
            raise BadRow(f"{key!r} is {describe_type(text)}, not text")
    texts = {text for text in found.values() if text}
    if len(texts) > 1:
        raise BadRow(f"{' and '.join(map(repr, found))} contain different system texts")
    return [Turn(SYSTEM, text) for text in texts]


def _history(row: RowValue) -> list[Turn]:
    """Return the earlier rounds: [[question, answer], ...], or its JSON text in a csv file."""
    turns = []
    value = row.get("history") or []
    for pair in parse_value(value, "history", list) if isinstance(value, str) else value:
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not all(isinstance(x, str) and x for x in pair):
            raise BadRow("'history' is not a list of [question, answer]")
        turns += [Turn(USER, pair[0]), Turn(ASSISTANT, pair[1])]
    return turns


def _read_src_tgt(row: RowValue, notes: Notes) -> list[Turn]:
    if not isinstance(row.get("context") or {}, dict):
        raise BadRow("'context' is text, which the format src_tgt does not use; add it to src")
    lists = [isinstance(row.get(key), list) for key in ("src", "tgt")]
    if not any(lists):
        return [*_system(row), Turn(USER, _text(row, "src", may_be_empty=True)), Turn(ASSISTANT, _text(row, "tgt"))]
    if not all(lists) or len(row["src"]) != len(row["tgt"]) or not row["src"]:
        raise BadRow("'src' and 'tgt' are not lists of equal length")
    turns = _system(row)
    for source, target in zip(row["src"], row["tgt"], strict=True):
        turns.append(Turn(USER, _text({"src": source}, "src", may_be_empty=True)))
        turns.append(Turn(ASSISTANT, _text({"tgt": target}, "tgt")))
    return turns


def _read_pair(row: RowValue, notes: Notes, question: str, answer: str, further: tuple[str, ...] = ()) -> list[Turn]:
    """Read a question and an answer; `further` are keys of a text that belongs to the question, such as a passage."""
    texts = {
        key: _text(row, key, may_be_empty=True) for key in further if key in row and not isinstance(row[key], dict)
    }
    nonempty = [text for text in texts.values() if text]
    if len(nonempty) > 1:
        raise BadRow(f"{' and '.join(map(repr, texts))} both contain text; join them")
    only_further = nonempty and isinstance(row.get(question), str) and not row[question].strip()
    if only_further:  # the other key contains the whole question
        user = Turn(USER, nonempty[0])
    else:
        user = Turn(USER, _text(row, question, may_be_empty=question == "inputs"), input="".join(nonempty))
    return [*_system(row), *_history(row), user, Turn(ASSISTANT, _text(row, answer))]


def _read_list(row: RowValue, notes: Notes, key: str) -> list[Turn]:
    turns = read_messages(row.get(key) or [], key, notes)
    system = _system(row)
    if turns[0].role != SYSTEM:
        return [*system, *turns]
    if system and system[0].content != turns[0].content:
        raise BadRow("the row has a system text that differs from the one in its messages")
    return turns


def _read_prompt_completion(row: RowValue, notes: Notes) -> list[Turn]:
    """Read TRL's prompts and completions: texts, or lists of messages of which only the completion is trained."""
    values = [row.get("prompt"), row.get("completion")]
    if not any(isinstance(value, list) for value in values):
        return _read_pair(row, notes, "prompt", "completion")
    if not all(isinstance(value, list) for value in values):
        raise BadRow("'prompt' and 'completion' are not both texts or both lists of messages")
    prompt, completion = (read_messages(row[key], key, notes) for key in ("prompt", "completion"))
    untrained = [
        Turn(t.role, t.content, False, t.input, t.fields) if t.role == ASSISTANT and t.has_loss is None else t
        for t in prompt
    ]
    return [*(() if prompt[0].role == SYSTEM else _system(row)), *untrained, *completion]


def _pair_format(
    question: str, answer: str, *further: str, optional: tuple[str, ...] = (), without: tuple[str, ...] = ()
) -> Format:
    keys = [question, *further[:1], answer, *optional]
    example = "{" + ", ".join(f'"{key}"' for key in keys) + "}"
    read = partial(_read_pair, question=question, answer=answer, further=further)
    return Format((question, answer), read, example, (*optional, *further), without)


FORMATS = {
    "src_tgt": Format(
        ("src", "tgt"), _read_src_tgt, '{"src": "...", "tgt": "..."}, or lists for several turns', ("context",)
    ),
    "content_summary": _pair_format("content", "summary"),
    "alpaca": _pair_format("instruction", "output", "input", optional=("history",)),
    "sharegpt": Format(
        ("conversations",), partial(_read_list, key="conversations"), '{"conversations": [{"from", "value"}], "tools"}'
    ),
    "messages": Format(
        ("messages",), partial(_read_list, key="messages"), '{"messages": [{"role", "content", "loss"}], "tools"}'
    ),
    "prompted": _pair_format("inputs", "targets"),
    "query_response": _pair_format("query", "response", optional=("history",)),
    "prompt_completion": Format(
        ("prompt", "completion"), _read_prompt_completion, '{"prompt", "completion"}: texts, or lists of messages'
    ),
    "prompt_response": _pair_format("prompt", "response", optional=("history",)),
    "instruction_response": _pair_format("instruction", "response", "input", "context"),
    "question_answer": _pair_format("question", "answer", "context"),
    "question_response": _pair_format("question", "response"),
    "input_output": _pair_format("input", "output", without=("instruction",)),
    "input_target": _pair_format("input", "target", without=("instruction",)),
    "conversation": Format(
        ("conversation",), partial(_read_list, key="conversation"), '{"conversation": [{"human", "assistant"}], "system"}'
    ),
}  # fmt: skip


def matching_formats(row: RowValue) -> list[str]:
    """Return the names of the formats whose keys a row has."""
    return [name for name, known in FORMATS.items() if known.matches(row)]


def recognize(rows: list[RowValue], where: str) -> str:
    """Return the name of the format of the first of `rows` that has one.

    Args:
        rows: Rows of one file.
        where: File, and line if known, for messages.

    Raises:
        UserError: If a row has the keys of no format or of several, or is preference data.
    """
    for row in rows:
        reject_preferences(row, where)
        matches = matching_formats(row)
        if len(matches) > 1:
            keys = ", ".join("+".join(FORMATS[name].required) for name in matches)
            raise UserError(
                f"{where}: the keys {keys} match several formats: {' or '.join(matches)}. Set --data_format {matches[0]}."
            )
        if matches:
            return matches[0]
    for row in rows:  # a key that is null in every row
        named = [name for name, known in FORMATS.items() if all(key in row for key in known.required)]
        if len(named) == 1:
            return named[0]
    # Quotes show blanks and invisible characters that make a name differ.
    names = [
        key if key.isprintable() and key == key.strip() else repr(key) for key in map(str, rows[0] if rows else ())
    ]
    found = ", ".join(names) or "no rows"
    raise UserError(
        f"{where}: unknown format: its keys are {found}.\nThe formats are\n{known_formats()}\n{_REMEDY}{_corpus_hint(rows)}"
    )


_REMEDY = "Rename the keys, or convert the rows with a file of templates (--prompt_templates)."


def _corpus_hint(rows: list[RowValue]) -> str:
    if rows and isinstance(rows[0].get("text"), str):
        return " Rows with only a text are a corpus for pretraining: use `paddle-llm data build`."
    return ""


def known_formats() -> str:
    """Return one line per format."""
    return "\n".join(f"  {name}: {known.example}" for name, known in FORMATS.items())


def read_row(row: object, format_name: str, where: str = "", notes: Notes | None = None) -> Conversation:
    """Convert a row of a known format to a conversation.

    Args:
        row: The row.
        format_name: Name of its format.
        where: File and line, for messages.
        notes: Counts that are updated.

    Raises:
        BadRow: If the row is not a conversation.
    """
    if not isinstance(row, dict):
        raise BadRow(f"{describe_type(row)}, not an object")
    known, counted = FORMATS[format_name], Notes()
    for key in known.required:
        if row.get(key) is None:
            _text(row, key)
    present = {key: value for key, value in row.items() if value is not None}
    used = {*known.required, *known.optional, *_TASK_KEYS, *_LANGUAGE_KEYS}
    count_ignored(present, used, format_name, counted)
    turns = known.read(present, counted)
    check_order(turns)
    fields = template_fields(present)
    for turn in turns:
        check_text((turn.content, turn.input, turn.fields))
    check_text(fields)
    if notes is not None:
        notes.add(counted)
    task, language = (_first(present, keys) for keys in (_TASK_KEYS, _LANGUAGE_KEYS))
    return Conversation(tuple(turns), task, language, where, fields)


def _first(row: RowValue, keys: tuple[str, ...]) -> str:
    return next((str(row[key]) for key in keys if row.get(key)), "")
