"""Requests for answers, from the command line or a file, and their conversion into prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from paddle_llm.config.local_files.instruction_data import did_you_mean
from paddle_llm.config.local_files.split_names import SUFFIXES, kind_of_file
from paddle_llm.core.console import say
from paddle_llm.core.counts import counted, counted_are
from paddle_llm.core.errors import UserError
from paddle_llm.core.json_files import parse_json
from paddle_llm.data.chat.selection import AUTO, choose_template
from paddle_llm.data.instructions.conversation import ASSISTANT, ROLES, SYSTEM, USER, BadRow, Conversation, Turn
from paddle_llm.data.instructions.files import RowReader, report_notes
from paddle_llm.data.instructions.formats import FORMATS
from paddle_llm.data.instructions.json_rows import Row
from paddle_llm.data.instructions.rows import read_rows
from paddle_llm.data.samples.encode import InstructionEncoder, PromptTooLong
from paddle_llm.data.text_files import read_lines
from paddle_llm.data.tokenizers.plain_text import NotText
from paddle_llm.data.tokenizers.text_codec import TextCodec
from paddle_llm.generation.prompts import check_text, encode_prompt, encode_text
from paddle_llm.generation.stop_tokens import stop_ids_of_encoder
from paddle_llm.models.prompt import Prompt

NONE = "none"
_QUESTION_AND_ANSWER_KEYS = (
    ("src", "tgt"), ("content", "summary"), ("instruction", "output"), ("instruction", "response"), ("inputs", "targets"),
    ("query", "response"), ("prompt", "completion"), ("prompt", "response"), ("question", "answer"), ("question", "response"),
    ("input", "output"), ("input", "target"),
)  # fmt: skip
_PREFERENCES = ("chosen", "rejected")  # answers of preference data; they are not part of the prompt
_PLACEHOLDER = "?"  # replaces a missing answer


@dataclass(frozen=True)
class Request:
    """A request for one answer.

    Attributes:
        text: Text to continue or, with a template, question to answer.
        conversation: Conversation to continue; None: `text` is used.
        reference: Expected answer; None: unknown.
        where: Origin of the request, for messages.
    """

    text: str = ""
    conversation: Conversation | None = None
    reference: str | None = None
    where: str = ""


# ---- files ----------------------------------------------------------------------------------------------------------


def read_requests(path: Path, data_format: str = AUTO) -> list[Request]:
    """Read the requests of a file: rows of instructions with or without answers, or one text per line.

    Args:
        path: File; its suffix decides whether it contains rows or lines.
        data_format: Format of the rows (--data_format).

    Raises:
        UserError: If the file does not exist or has no prompts, the format is unknown, or a row has no question.
    """
    if path.is_dir():
        raise UserError(f"--input {path} is a folder. Name a file of prompts.")
    if not path.is_file():
        why = (
            "is not a regular file. Write the prompts to a file."
            if path.exists()
            else f"does not exist.{did_you_mean(str(path)) or ' Correct the path.'}"
        )
        raise UserError(f"--input {path} {why}")
    if any(path.name.lower().endswith(suffix) for suffix in _instruction_suffixes()):
        found = _read_instructions(path, data_format)
    else:
        found = _read_lines(path, data_format)
    if not found:
        raise UserError(f"--input {path} contains no prompts. Write one prompt per line, or rows of instructions.")
    return found


def _read_lines(path: Path, data_format: str) -> list[Request]:
    """One prompt per line; empty lines are skipped and counted."""
    if data_format != AUTO:
        raise UserError(
            f"--data_format {data_format} applies to rows of instructions only, and {path} is read as one prompt per line. "
            f"Rename the file so that it ends in one of {', '.join(SUFFIXES)}, or drop --data_format."
        )
    lines = list(read_lines(path))
    found = [Request(line, where=f"{path}, line {number}") for number, line in lines if line.strip()]
    if len(found) < len(lines):
        say(f"{path}: skipped {counted(len(lines) - len(found), 'empty line')} of {len(lines)}")
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
        raise UserError(
            f"--data_format {data_format} is unknown. Use one of {known}.{did_you_mean(data_format, *FORMATS)}"
        )
    rows = _without_preferences(str(path), rows)
    word = "row" if kind_of_file(str(path)) == "parquet" else "line"
    completed = [_with_answer(row.value) for row in rows]
    reader = RowReader(str(path), data_format, None)
    reader.choose_format([row._replace(value=value) for row, value in zip(rows, completed, strict=True)])
    found = []
    for row, value in zip(rows, completed, strict=True):
        where = f"{path}, {word} {row.line}"
        try:
            if row.problem:
                raise BadRow(row.problem)
            (conversation,) = reader.read(value, where)
        except BadRow as bad:
            raise UserError(f"{where}: {bad}. Correct the row.{_plain_text_hint(row.value)}") from bad
        reference = conversation.turns[-1].content if value is row.value else None
        found.append(Request(conversation=conversation, reference=reference, where=where))
    report_notes(str(path), reader, [request.conversation for request in found if request.conversation is not None])
    return found


def _plain_text_hint(value: object) -> str:
    return " To continue plain texts, write them to a .txt file, one per line." if isinstance(value, str) else ""


def _without_preferences(path: str, rows: list[Row]) -> list[Row]:
    """Reduce rows of preference data to their prompts.

    Raises:
        UserError: If such a row has no prompt.
    """
    found = []
    for row in rows:
        keys = [key for key in _PREFERENCES if isinstance(row.value, dict) and row.value.get(key) is not None]
        if keys and row.value.get("prompt") is None and row.value.get("instruction") is None:
            raise UserError(f"{path}: preference data without a prompt. Add a prompt to each row.")
        found.append(row._replace(value={k: v for k, v in row.value.items() if k not in keys}) if keys else row)
    count = sum(reduced is not row for reduced, row in zip(found, rows, strict=True))
    if count:
        say(
            f"{path}: {counted_are(count, 'row')} preference data. Their prompts are answered; chosen and rejected are ignored."
        )
    return found


def _with_answer(row: Any) -> Any:
    """Add a placeholder to a row that ends with a question, so that it can be read like a row with an answer."""
    if not isinstance(row, dict):
        return row
    pairs = {known.required for known in FORMATS.values() if known.matches(row)}
    for question, answer in _QUESTION_AND_ANSWER_KEYS:
        if row.get(question) is None or (pairs and (question, answer) not in pairs):
            continue
        if question == "prompt" and isinstance(row[question], list):  # TRL's lists of messages
            return row if row.get(answer) else {**row, answer: [{"role": ASSISTANT, "content": _PLACEHOLDER}]}
        if isinstance(row[question], list):
            given = row.get(answer) or []
            if not isinstance(given, list):
                return row
            return {**row, answer: [*given, _PLACEHOLDER]} if len(given) == len(row[question]) - 1 else row
        if not row.get(answer):
            return {**row, answer: _PLACEHOLDER}
    for key in ("messages", "conversations"):
        turns = row.get(key)
        if isinstance(turns, list) and turns and isinstance(turns[-1], dict):
            role = ROLES.get(str(turns[-1].get("role") or turns[-1].get("from")).lower())
            if role not in (None, ASSISTANT):
                return {**row, key: [*turns, {"role": ASSISTANT, "content": _PLACEHOLDER}]}
    return row


# ---- templates ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PromptReader:
    """Converts requests into prompts.

    Attributes:
        codec: The tokenizer.
        encoder: Encoder of conversations; None: plain text is continued.
        notice: Line that describes the template, to be reported.
        system: System message for conversations that have none.
    """

    codec: TextCodec
    encoder: InstructionEncoder | None
    notice: str
    system: str = ""

    def __call__(self, request: Request) -> Prompt:
        """Encode a request.

        Raises:
            UserError: If the prompt is empty or too long, or is not text.
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
            return encode_prompt(self.encoder, self.conversation(request))
        except (PromptTooLong, NotText) as error:
            raise UserError(f"{request.where or 'the prompt'}: {error}") from error

    def conversation(self, request: Request) -> Conversation:
        """Return the conversation of a request, with the system message in front if it has none."""
        conversation = request.conversation
        if conversation is None:
            return question(request.text, self.system)
        if not self.system or any(turn.role == SYSTEM for turn in conversation.turns):
            return conversation
        return replace(conversation, turns=(Turn(SYSTEM, self.system), *conversation.turns))

    @property
    def stop_ids(self) -> frozenset[int]:
        """Token ids that end an answer; empty without a template."""
        return frozenset() if self.encoder is None else stop_ids_of_encoder(self.encoder)


def question(text: str, system: str = "") -> Conversation:
    """Return a conversation that consists of a question."""
    return Conversation((*((Turn(SYSTEM, system),) if system else ()), Turn(USER, text)), where="the prompt")


@dataclass(frozen=True)
class TemplateSettings:
    """Settings that determine the chat template of requests.

    Attributes:
        requested: --chat_template; None: plain text for texts, "auto" for conversations. "auto" is the template of the
            model's training, else that of `choose_template`.
        trained_with: --chat_template of the model's training; None: unknown.
        record_folder: Folder that records the template of training; None: the tokenizer folder.
        tokenizer_folder: Folder of the tokenizer.
        src_length: Maximum length of a prompt, in tokens, with a template.
        date: Date for a template that writes the current date.
        system: System message for conversations that have none.
    """

    requested: str | None
    trained_with: str | None
    record_folder: Path | None
    tokenizer_folder: str
    src_length: int
    date: str | None = None
    system: str = ""


def choose_reader(requests: Sequence[Request], codec: TextCodec, settings: TemplateSettings) -> PromptReader:
    """Choose the template of requests. Without requests, choose the template of a chat.

    Raises:
        UserError: If the template does not exist, or conversations have no template.
    """
    requested, trained_with = settings.requested, settings.trained_with
    are_texts = bool(requests) and all(request.conversation is None for request in requests)
    if requested == NONE and not are_texts:
        raise UserError(f"--chat_template {NONE}: a conversation needs a template. Use --prompt for plain text.")
    if are_texts and requested in (None, NONE):
        reason = "as requested" if requested else "the default; --chat_template auto uses a template"
        if settings.system:
            raise UserError("--system needs a chat template. Add --chat_template auto, or drop --system.")
        return PromptReader(codec, None, f"no prompt template: prompts are continued as plain text ({reason})")
    as_trained = requested in (None, AUTO) and trained_with not in (None, AUTO)
    name = trained_with if as_trained else requested or AUTO
    record_folder = str(settings.record_folder) if settings.record_folder is not None else None
    chosen = choose_template(name, codec, settings.tokenizer_folder, date=settings.date, trained=record_folder)
    for line in chosen.notices:
        say(line)
    reason = "as in the model's training" if as_trained else chosen.why
    encoder = InstructionEncoder(
        codec,
        chosen.template,
        max_length=settings.src_length + 1,
        src_length=settings.src_length,
        special_text_as=chosen.special_text_as,
    )
    return PromptReader(codec, encoder, f"prompt template: {chosen.template.name} ({reason})", settings.system)
