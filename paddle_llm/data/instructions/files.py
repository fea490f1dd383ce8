"""Reads conversations from instruction files. Bad rows are counted by reason, and rejected or skipped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from paddle_llm.config.local_files.split_names import kind_of_file
from paddle_llm.core.console import say
from paddle_llm.core.counts import counted
from paddle_llm.core.errors import UserError
from paddle_llm.data.instructions.conversation import BadRow, Conversation
from paddle_llm.data.instructions.dataset_info import FileInfo, find_entry
from paddle_llm.data.instructions.formats import FORMATS, matching_formats, read_row, recognize
from paddle_llm.data.instructions.json_rows import Row
from paddle_llm.data.instructions.messages import Notes, check_text
from paddle_llm.data.instructions.other_keys import reject_preferences
from paddle_llm.data.instructions.prompted_tasks import PromptTemplates
from paddle_llm.data.instructions.rows import read_rows
from paddle_llm.data.instructions.table_rows import without_nulls
from paddle_llm.data.json_types import describe_type

_HEAD_ROWS = 100  # rows by which the format of a file is chosen
_SHOWN = 5


@dataclass
class Loaded:
    """Content of several files.

    Attributes:
        conversations: Conversations in the order of files and rows.
        reasons: Counts of bad rows by reason.
        examples: First bad rows, with file and line.
        formats: Format of each file.
    """

    conversations: list[Conversation] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)
    formats: dict[str, str] = field(default_factory=dict)


def load_conversations(
    files: Iterable[str],
    data_format: str = "auto",
    prompt_templates: str | None = None,
    skip_bad_rows: bool = False,
    report_files: bool = True,
) -> Loaded:
    """Read every conversation of the files, in order.

    Args:
        files: Paths of the files.
        data_format: Name in `FORMATS` for all files; "auto" recognizes the format by the keys of the rows.
        prompt_templates: File of templates that turn raw records into conversations, instead of a format.
        skip_bad_rows: Whether bad rows are skipped and counted.
        report_files: Whether to print the number of conversations and the format of each file.

    Raises:
        UserError: If the format is unknown, rows are bad and not to be skipped, or there is no conversation.
    """
    if data_format != "auto" and data_format not in FORMATS:
        raise UserError(f"--data_format {data_format}: unknown. Use one of auto, {', '.join(FORMATS)}.")
    prompted = PromptTemplates(prompt_templates) if prompt_templates else None
    loaded = Loaded()
    for path in files:
        _load_file(path, data_format, prompted, loaded, report_files)
    _check_bad_rows(loaded, skip_bad_rows)
    for name, count in prompted.applied.items() if prompted else ():
        say(f"template {name!r}: {count} samples" + ("" if count else "; it does not apply to any record"))
    return loaded


class RowReader:
    """Reads the rows of one file and chooses the format of each by its keys.

    Attributes:
        path: Path of the file.
        info: Entry of the file in dataset_info.json; None if there is none or it is not used.
        formats: Counts of rows by format.
        notes: Counts of what is to be reported.
    """

    def __init__(self, path: str, data_format: str, prompted: PromptTemplates | None) -> None:
        self.path, self._prompted = path, prompted
        self.info: FileInfo | None = None if prompted or data_format != "auto" else find_entry(path)
        self._given = None if data_format == "auto" else data_format
        self._joined = kind_of_file(path) == "parquet" and not prompted
        self._by_keys: dict[frozenset[str], str] = {}
        self._first: str | None = None
        self._columns: set[str] = set()
        self.formats: Counter[str] = Counter()
        self.notes = Notes()

    def choose_format(self, head: list[Row]) -> None:
        """Choose the format by the first rows; later rows that match no format are read in it."""
        rows: list[Mapping[str, Any]] = [row.value for row in head if isinstance(row.value, dict)]
        if self._prompted or self._given or self.info or not rows:
            return
        self._first = recognize(rows, self.path)

    def describe(self) -> str:
        """Return the format and how it was chosen."""
        if self._prompted:
            return f"raw records, templates of {self._prompted.path}"
        if self._given:
            return f"{self._given}, as requested"
        if self.info:
            return f"{self.info.format}, according to {self.info.where}"
        if len(self.formats) > 1:
            return "by row: " + ", ".join(f"{name} ({count} rows)" for name, count in self.formats.most_common())
        name = next(iter(self.formats), self._first)
        return f"{name}, by its keys {', '.join(FORMATS[name].required)}" if name else "unknown"

    def read(self, value: object, where: str) -> Iterator[Conversation]:
        """Yield the conversations of a row.

        Args:
            value: The row.
            where: File and line, for messages.

        Raises:
            BadRow: If the row is not a conversation.
            UserError: If the row has the keys of several formats, or is preference data.
        """
        if self._prompted:
            for conversation in self._prompted.conversations(value, where):
                check_text([turn.content for turn in conversation.turns])
                yield conversation
            return
        if self._joined:
            value = without_nulls(value)
        if self.info:
            self._columns |= set(value) & self.info.named if isinstance(value, dict) else set()
            value = self.info.rename(value)
        name = self._format(value, where)
        conversation = read_row(value, name, where, self.notes)
        self.formats[name] += 1
        yield conversation

    def check_columns(self) -> None:
        """Check, after all rows were read, that each column named in dataset_info.json occurred in a row.

        Raises:
            UserError: If a column did not occur.
        """
        missing = sorted(self.info.named - self._columns) if self.info else []
        if self.info and missing and self.formats:
            raise UserError(
                f"{self.path}: {self.info.where} names {', '.join(map(repr, missing))} as a column, which no row has. Correct the entry."
            )

    def _format(self, value: object, where: str) -> str:
        if self._given:
            return self._given
        if self.info:
            return self.info.format
        if not isinstance(value, dict):
            raise BadRow(f"{describe_type(value)}, not an object")
        keys = frozenset(key for key, item in value.items() if item is not None)
        if keys not in self._by_keys:
            reject_preferences(value, where)
            found = recognize([value], where) if matching_formats(value) or self._first is None else self._first
            self._by_keys[keys] = found
        return self._by_keys[keys]


@dataclass
class FileContent:
    """Rows of one file.

    Attributes:
        reader: Reader that chose the formats of the rows.
        conversations: Conversations in the order of the rows.
        bad_rows: (file and line, reason) of each bad row.
    """

    reader: RowReader
    conversations: list[Conversation] = field(default_factory=list)
    bad_rows: list[tuple[str, str]] = field(default_factory=list)


def read_file(path: str, data_format: str, prompted: PromptTemplates | None) -> FileContent:
    """Read all rows of a file.

    Args:
        path: Path of the file.
        data_format: Name in `FORMATS`, or "auto".
        prompted: Templates that turn raw records into conversations; None uses the format.

    Raises:
        UserError: If the file cannot be read or its format is unknown.
    """
    rows = read_rows(path)
    head = list(islice(rows, _HEAD_ROWS))
    content = FileContent(RowReader(path, data_format, prompted))
    content.reader.choose_format(head)
    word = "row" if kind_of_file(path) == "parquet" else "line"
    for row in (*head, *rows):
        where = f"{path}, {word} {row.line}"
        try:
            if row.problem:
                raise BadRow(row.problem)
            content.conversations.extend(list(content.reader.read(row.value, where)))
        except BadRow as reason:
            content.bad_rows.append((where, str(reason)))
    content.reader.check_columns()
    return content


def _load_file(
    path: str, data_format: str, prompted: PromptTemplates | None, loaded: Loaded, report_files: bool
) -> None:
    content = read_file(path, data_format, prompted)
    loaded.conversations += content.conversations
    for where, reason in content.bad_rows:
        loaded.reasons[reason] += 1
        if len(loaded.examples) < _SHOWN:
            loaded.examples.append(f"{where}: {reason}")
    format_description = content.reader.describe()
    loaded.formats[path] = format_description.split(",")[0]
    if report_files:
        bad = len(content.bad_rows)
        say(
            f"{path}: {counted(len(content.conversations), 'conversation')}; format {format_description}"
            + (f"; {counted(bad, 'bad row')}" if bad else "")
        )
    report_notes(path, content.reader, content.conversations)


def report_notes(path: str, reader: RowReader, conversations: Sequence[Conversation]) -> None:
    """Report keys without effect, and what the chat template gets besides the messages."""
    ignored = reader.notes.ignored
    if ignored:
        say(f"{path}: ignored keys: " + ", ".join(f"{key} ({count:,})" for key, count in ignored.most_common()))
    if reader.info and reader.info.ignored:
        say(f"{path}: ignored settings of {reader.info.where}: {', '.join(reader.info.ignored)}")
    if reader.notes.calls_as_text:
        say(
            f"{path}: {reader.notes.calls_as_text:,} tool calls are text in the data: a chat template with tool calls gets "
            "them as calls, any other template as text"
        )
    rows = Counter(key for one in conversations for key in one.fields)
    messages = Counter(key for one in conversations for turn in one.turns for key in turn.fields if key != "content")
    if rows or messages:
        parts = [f"{key} ({count:,} rows)" for key, count in rows.items()]
        parts += [f"{key} ({count:,} messages)" for key, count in messages.items()]
        say(f"{path}: passed to the chat template: {', '.join(parts)}")


def _check_bad_rows(loaded: Loaded, skip_bad_rows: bool) -> None:
    bad = sum(loaded.reasons.values())
    if bad:
        reasons = "; ".join(f"{count} x {reason}" for reason, count in loaded.reasons.most_common(_SHOWN))
        summary = f"{counted(bad, 'bad row')} ({reasons}). The first:\n  " + "\n  ".join(loaded.examples)
        if not skip_bad_rows:
            raise UserError(f"{summary}\nCorrect them, or skip them with --skip_bad_rows.")
        say(f"skipped: {summary}")
    if not loaded.conversations:
        raise UserError(f"{', '.join(loaded.formats) or 'the data'}: no conversation. Use files with instruction rows.")
