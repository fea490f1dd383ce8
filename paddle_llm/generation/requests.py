"""What is to be generated: prompts from the command line or a file, as they stand or through a template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from paddle_llm.config.local_files.instruction_data import near
from paddle_llm.config.local_files.split_names import kind_of_file
from paddle_llm.core.console import say
from paddle_llm.core.errors import UserError
from paddle_llm.core.json_files import parse_json
from paddle_llm.data.chat.jinja_templates import AUTO, choose_template
from paddle_llm.data.instructions.files import SUFFIXES, RowReader, read_rows, report_notes
from paddle_llm.data.instructions.formats import (
    ASSISTANT,
    FORMATS,
    ROLES,
    SYSTEM,
    USER,
    BadRow,
    Conversation,
    Turn,
)
from paddle_llm.data.instructions.json_rows import Row
from paddle_llm.data.samples.encode import DoesNotFit, InstructionEncoder
from paddle_llm.data.text_files import read_lines
from paddle_llm.data.tokenizers.plain_text import NotText
from paddle_llm.data.tokenizers.text_codec import TextCodec
from paddle_llm.generation.prompts import check_text, encode_prompt, encode_text, stop_ids
from paddle_llm.models.prompt import Prompt

NONE = "none"
_ANSWERS = (
    ("src", "tgt"), ("content", "summary"), ("instruction", "output"), ("instruction", "response"), ("inputs", "targets"),
    ("query", "response"), ("prompt", "completion"), ("prompt", "response"), ("question", "answer"), ("question", "response"),
    ("input", "output"), ("input", "target"),
)  # fmt: skip
_PREFERRED = ("chosen", "rejected")  # answers of preference data, which a prompt does not need
_UNKNOWN = "?"  # stands for an answer that is not there


@dataclass(frozen=True)
class Request:
    """One answer that is wanted, behind a text or in a conversation. reference: None where there is none."""

    text: str = ""
    conversation: Conversation | None = None
    reference: str | None = None
    where: str = ""


# ---- files ----------------------------------------------------------------------------------------------------------


def read_requests(path: Path, data_format: str = AUTO) -> list[Request]:
    """Every request of a file: instructions, with answers or without, or (another suffix) one text per line.

    Raises:
        UserError: no such file, an unknown format, a row that holds no question.
    """
    if path.is_dir():
        raise UserError(f"--input {path} is a folder. Name a file of prompts.")
    if not path.is_file():
        why = (
            "is not a regular file. Write the prompts to a file."
            if path.exists()
            else f"does not exist.{near(str(path))}"
        )
        raise UserError(f"--input {path} {why}")
    if any(path.name.lower().endswith(suffix) for suffix in _instruction_suffixes()):
        found = _read_instructions(path, data_format)
    else:
        found = _read_lines(path, data_format)
    if not found:
        raise UserError(f"--input {path} holds no prompts. Write one prompt per line, or rows of instructions.")
    return found


def _read_lines(path: Path, data_format: str) -> list[Request]:
    """One prompt per line; empty lines are skipped and counted."""
    if data_format != AUTO:
        raise UserError(
            f"--data_format {data_format} is for rows of instructions, and {path} is read as one prompt per line. "
            f"Rename it to end in one of {', '.join(SUFFIXES)}, or leave --data_format out."
        )
    lines = list(read_lines(path))
    found = [Request(line, where=f"{path}, line {number}") for number, line in lines if line.strip()]
    if len(found) < len(lines):
        say(f"{path}: {len(lines) - len(found)} of {len(lines)} lines are empty and are skipped.")
    if found and all(_is_json_object(request.text) for request in found):
        say(
            f"{path}: every line is a JSON object and is continued as text. Rename the file to .jsonl to read it as rows."
        )
    return found


def _is_json_object(line: str) -> bool:
    try:
        return isinstance(parse_json(line), dict)
    except (ValueError, RecursionError):
        return False


def _instruction_suffixes() -> list[str]:
    return [suffix + packed for suffix in SUFFIXES for packed in ("", ".gz", ".zst")]


def _read_instructions(path: Path, data_format: str) -> list[Request]:
    rows = list(read_rows(str(path)))
    if data_format not in (AUTO, *FORMATS):
        known = ", ".join((AUTO, *FORMATS))
        raise UserError(f"--data_format {data_format}: is none of {known}.{near(data_format, *FORMATS)}")
    rows = _without_preferences(str(path), rows)
    word = "row" if kind_of_file(str(path)) == "parquet" else "line"
    whole = [_with_answer(row.value) for row in rows]
    reader = RowReader(str(path), data_format, None)
    reader.look_at([row._replace(value=value) for row, value in zip(rows, whole, strict=True)])
    found = []
    for row, value in zip(rows, whole, strict=True):
        where = f"{path}, {word} {row.line}"
        try:
            if row.problem:
                raise BadRow(row.problem)
            (conversation,) = reader.read(value, where)
        except BadRow as bad:
            raise UserError(f"{where}: {bad}. Correct the row.{_if_text(row.value)}") from bad
        reference = conversation.turns[-1].content if value is row.value else None
        found.append(Request(conversation=conversation, reference=reference, where=where))
    report_notes(str(path), reader, [one.conversation for one in found if one.conversation is not None])
    return found


def _if_text(value: Any) -> str:
    return " A list of plain texts is read from a .txt file with one text per line." if isinstance(value, str) else ""


def _without_preferences(path: str, rows: list[Row]) -> list[Row]:
    """Rows of preference data as their prompts alone.

    Raises:
        UserError: If such a row has no prompt.
    """
    found = []
    for row in rows:
        keys = [key for key in _PREFERRED if isinstance(row.value, dict) and row.value.get(key) is not None]
        if keys and row.value.get("prompt") is None and row.value.get("instruction") is None:
            raise UserError(f"{path}: preference data without a prompt. Give rows with a prompt alone.")
        found.append(row._replace(value={k: v for k, v in row.value.items() if k not in keys}) if keys else row)
    count = sum(one is not row for one, row in zip(found, rows, strict=True))
    if count:
        say(f"{path}: {count} rows are preference data: their prompts are answered, chosen and rejected are not used")
    return found


def _with_answer(row: Any) -> Any:
    """A row without its last answer gets one, so that it can be read like the others."""
    if not isinstance(row, dict):
        return row
    pairs = {known.required for known in FORMATS.values() if known.matches(row)}
    for question, answer in _ANSWERS:
        if row.get(question) is None or (pairs and (question, answer) not in pairs):
            continue
        if question == "prompt" and isinstance(row[question], list):  # TRL's lists of messages
            return row if row.get(answer) else {**row, answer: [{"role": ASSISTANT, "content": _UNKNOWN}]}
        if isinstance(row[question], list):
            given = row.get(answer) or []
            if not isinstance(given, list):
                return row
            return {**row, answer: [*given, _UNKNOWN]} if len(given) == len(row[question]) - 1 else row
        if not row.get(answer):
            return {**row, answer: _UNKNOWN}
    for key in ("messages", "conversations"):
        turns = row.get(key)
        if isinstance(turns, list) and turns and isinstance(turns[-1], dict):
            role = ROLES.get(str(turns[-1].get("role") or turns[-1].get("from")).lower())
            if role not in (None, ASSISTANT):
                return {**row, key: [*turns, {"role": ASSISTANT, "content": _UNKNOWN}]}
    return row


# ---- templates ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reader:
    """Makes prompts of requests.

    Attributes:
        encoder: None: texts are continued as they stand.
        system: stands before each text that is asked as a question.
        told: what to say about it.
    """

    codec: TextCodec
    encoder: InstructionEncoder | None
    told: str
    system: str = ""

    def __call__(self, request: Request) -> Prompt:
        """A request as tokens.

        Raises:
            UserError: a prompt that is empty or has no room, or that is not text.
        """
        for text in (request.text, self.system):
            check_text(text, request.where or "the prompt")
        prompt = self._encode(request)
        self.codec.require_rows(prompt.ids, request.where or "the prompt")
        return prompt

    def _encode(self, request: Request) -> Prompt:
        try:
            if self.encoder is None:
                return encode_text(self.codec, request.text)
            return encode_prompt(self.encoder, self._asked(request))
        except (DoesNotFit, NotText) as error:
            raise UserError(f"{request.where or 'the prompt'}: {error}") from error

    def _asked(self, request: Request) -> Conversation:
        """The conversation of a request, with the system text in front if it has none."""
        asked = request.conversation
        if asked is None:
            return question(request.text, self.system)
        if not self.system or any(turn.role == SYSTEM for turn in asked.turns):
            return asked
        return replace(asked, turns=(Turn(SYSTEM, self.system), *asked.turns))

    @property
    def stop_ids(self) -> frozenset[int]:
        """What the template's answers end with."""
        return frozenset() if self.encoder is None else stop_ids(self.encoder)


def question(text: str, system: str = "") -> Conversation:
    """A conversation that waits for its first answer."""
    return Conversation((*((Turn(SYSTEM, system),) if system else ()), Turn(USER, text)), where="the prompt")


def reader_of(
    requests: Sequence[Request],
    codec: TextCodec,
    *,
    asked_for: str | None,
    trained_with: str | None,
    folder: str,
    trained: Path | None = None,
    date: str | None = None,
    src_length: int,
    system: str = "",
) -> Reader:
    """How requests become prompts.

    Args:
        requests: empty for a chat.
        asked_for: --chat_template; None: texts as they stand, conversations as with auto: by the template of the model's
            training, else as `choose_template` has it.
        trained_with: --chat_template of that training, where it is known.
        folder: the tokenizer's.
        trained: Folder that keeps the template of the training; None: that of the tokenizer.
        date: Date for a template that asks for today's.
        src_length: the most tokens of a prompt that a template makes.

    Raises:
        UserError: no such template, or conversations without one.
    """
    texts = bool(requests) and all(request.conversation is None for request in requests)
    if asked_for == NONE and not texts:
        raise UserError(f"--chat_template {NONE}: a conversation needs a template; texts are given with --prompt")
    if texts and asked_for in (None, NONE):
        how = "as asked for" if asked_for else "--chat_template auto asks through one"
        if system:
            raise UserError(f"--system needs a template ({how})")
        return Reader(codec, None, f"no prompt template: texts are continued as they stand ({how})")
    as_trained = asked_for in (None, AUTO) and trained_with not in (None, AUTO)
    name = trained_with if as_trained else asked_for or AUTO
    where = str(trained) if trained is not None else None
    chosen = choose_template(name, codec, folder, date=date, trained=where)
    for line in chosen.notices:
        say(line)
    why = "as in the model's training" if as_trained else chosen.why
    encoder = InstructionEncoder(
        codec,
        chosen.template,
        max_length=src_length + 1,
        src_length=src_length,
        special_text_as=chosen.special_text_as,
    )
    return Reader(codec, encoder, f"prompt template: {chosen.template.name} ({why})", system)
