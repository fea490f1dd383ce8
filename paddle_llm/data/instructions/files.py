"""Reads conversations from files of instructions. Rows that are no conversation are counted by reason, and refused or left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from paddle_llm.config.local_files.split_names import SPLIT_NAMES, SUFFIXES, kind_of_file
from paddle_llm.core.console import say
from paddle_llm.core.counts import counted
from paddle_llm.core.errors import UserError
from paddle_llm.data.instructions.data_files import DEFAULT_DATA, find_files
from paddle_llm.data.instructions.dataset_info import FileInfo, info_of
from paddle_llm.data.instructions.formats import FORMATS, BadRow, Conversation, matching_formats, read_row, recognise
from paddle_llm.data.instructions.json_rows import Row
from paddle_llm.data.instructions.messages import Notes, check_text
from paddle_llm.data.instructions.other_keys import refuse_preferences
from paddle_llm.data.instructions.prompted_tasks import PromptTemplates
from paddle_llm.data.instructions.rows import read_rows
from paddle_llm.data.instructions.table_rows import without_nulls

__all__ = ["DEFAULT_DATA", "SPLITS", "SUFFIXES", "Loaded", "Row", "find_files", "load_conversations", "read_rows"]

SPLITS = SPLIT_NAMES
_LOOK_AT = 100
_SHOWN = 5


@dataclass
class Loaded:
    """What a set of files holds.

    Attributes:
        conversations: In the order of files and rows.
        reasons: Counts of bad rows by reason.
        examples: The first bad rows, with file and line.
        formats: The format of each file.
    """

    conversations: list[Conversation] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)
    formats: dict[str, str] = field(default_factory=dict)


def load_conversations(
    files: Iterable[str], data_format: str = "auto", prompt_templates: str | None = None, skip_bad_rows: bool = False
) -> Loaded:
    """Every conversation of the files, in order; the format of each file is reported with the reason.

    Args:
        data_format: A name of `FORMATS` for every file; auto: by the keys of the rows.
        prompt_templates: A file of templates that turns raw records into conversations, in place of a format.
        skip_bad_rows: Whether bad rows are left out and counted.

    Raises:
        UserError: If a format is unknown, rows are bad and not to be skipped, or there is no conversation at all.
    """
    if data_format != "auto" and data_format not in FORMATS:
        raise UserError(f"--data_format {data_format}: is none of auto, {', '.join(FORMATS)}.")
    prompted = PromptTemplates(prompt_templates) if prompt_templates else None
    loaded = Loaded()
    for path in files:
        _load_file(path, data_format, prompted, loaded)
    _judge(loaded, skip_bad_rows)
    for name, count in prompted.applied.items() if prompted else ():
        say(f"template {name!r}: {count} samples" + ("" if count else "; it applies to no record"))
    return loaded


class RowReader:
    """Reads the rows of one file; chooses the format of each by its keys.

    Attributes:
        formats: Counts of rows by format.
        notes: What is to be reported.
    """

    def __init__(self, path: str, data_format: str, prompted: PromptTemplates | None):
        self.path, self._prompted = path, prompted
        self.info: FileInfo | None = None if prompted or data_format != "auto" else info_of(path)
        self._given = None if data_format == "auto" else data_format
        self._joined = kind_of_file(path) == "parquet" and not prompted
        self._by_keys: dict[frozenset[Any], str] = {}
        self._first: str | None = None
        self._columns: set[str] = set()
        self.formats: Counter[str] = Counter()
        self.notes = Notes()

    def look_at(self, head: list[Row]) -> None:
        """Choose the format by the first rows; rows without keys of their own format are read in it."""
        rows = [row.value for row in head if isinstance(row.value, dict)]
        if self._prompted or self._given or self.info or not rows:
            return
        self._first = recognise(rows, self.path)

    def describe(self) -> str:
        """The format and how it was chosen."""
        if self._prompted:
            return f"raw records, templates of {self._prompted.path}"
        if self._given:
            return f"{self._given}, as asked for"
        if self.info:
            return f"{self.info.format}, as {self.info.where} says"
        if len(self.formats) > 1:
            return "by row: " + ", ".join(f"{name} ({count} rows)" for name, count in self.formats.most_common())
        name = next(iter(self.formats), self._first)
        return f"{name}, by its keys {', '.join(FORMATS[name].required)}" if name else "unknown"

    def read(self, value: Any, where: str) -> Iterator[Conversation]:
        """The conversations of a row.

        Raises:
            BadRow: With the reason.
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
        """Refuse a column of dataset_info.json that no row has, after all rows were read.

        Raises:
            UserError: With the names of the columns.
        """
        missing = sorted(self.info.named - self._columns) if self.info else []
        if self.info and missing and self.formats:
            raise UserError(
                f"{self.path}: no row has {', '.join(map(repr, missing))}, which {self.info.where} names as a column. Correct the entry."
            )

    def _format(self, value: Any, where: str) -> str:
        if self._given or self.info:
            return self._given or self.info.format
        if not isinstance(value, dict):
            raise BadRow(f"is a JSON {type(value).__name__}, not an object")
        keys = frozenset(key for key, item in value.items() if item is not None)
        if keys not in self._by_keys:
            refuse_preferences(value, where)
            found = recognise([value], where) if matching_formats(value) or self._first is None else self._first
            self._by_keys[keys] = found
        return self._by_keys[keys]


def _load_file(path: str, data_format: str, prompted: PromptTemplates | None, loaded: Loaded) -> None:
    rows = read_rows(path)
    head = list(islice(rows, _LOOK_AT))
    reader = RowReader(path, data_format, prompted)
    reader.look_at(head)
    before, bad = len(loaded.conversations), sum(loaded.reasons.values())
    word = "row" if kind_of_file(path) == "parquet" else "line"
    for row in (*head, *rows):
        where = f"{path}, {word} {row.line}"
        try:
            if row.problem:
                raise BadRow(row.problem)
            loaded.conversations.extend(list(reader.read(row.value, where)))
        except BadRow as reason:
            loaded.reasons[str(reason)] += 1
            if len(loaded.examples) < _SHOWN:
                loaded.examples.append(f"{where}: {reason}")
    reader.check_columns()
    loaded.formats[path] = reader.describe().split(",")[0]
    bad = sum(loaded.reasons.values()) - bad
    say(
        f"{path}: {counted(len(loaded.conversations) - before, 'conversation')}; format {reader.describe()}"
        + (f"; {counted(bad, 'bad row')}" if bad else "")
    )
    report_notes(path, reader, loaded.conversations[before:])


def report_notes(path: str, reader: RowReader, conversations: list[Conversation]) -> None:
    """Report what of the rows has no effect, and what the chat template gets beside the messages."""
    ignored = reader.notes.ignored
    if ignored:
        say(f"{path}: ignored keys: " + ", ".join(f"{key} ({count:,})" for key, count in ignored.most_common()))
    if reader.info and reader.info.ignored:
        say(f"{path}: ignored settings of {reader.info.where}: {', '.join(reader.info.ignored)}")
    if reader.notes.calls_as_text:
        say(
            f"{path}: {reader.notes.calls_as_text:,} tool calls are text in the data: a chat template with tool calls gets them as such, "
            "any other template as text"
        )
    rows = Counter(key for one in conversations for key in one.fields)
    messages = Counter(key for one in conversations for turn in one.turns for key in turn.fields if key != "content")
    if rows or messages:
        parts = [f"{key} ({count:,} rows)" for key, count in rows.items()]
        parts += [f"{key} ({count:,} messages)" for key, count in messages.items()]
        say(f"{path}: for the chat template: {', '.join(parts)}")


def _judge(loaded: Loaded, skip_bad_rows: bool) -> None:
    bad = sum(loaded.reasons.values())
    if bad:
        reasons = "; ".join(f"{count} x {reason}" for reason, count in loaded.reasons.most_common(_SHOWN))
        summary = f"{counted(bad, 'bad row')} ({reasons}). The first:\n  " + "\n  ".join(loaded.examples)
        if not skip_bad_rows:
            raise UserError(f"{summary}\nCorrect them, or leave them out with --skip_bad_rows.")
        say(f"left out: {summary}")
    if not loaded.conversations:
        raise UserError(f"{', '.join(loaded.formats) or 'the data'}: holds no conversation.")
