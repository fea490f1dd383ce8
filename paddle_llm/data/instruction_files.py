"""Reads conversations from files: jsonl, json (an array), csv, tsv, parquet, plain, .gz or .zst; folders with train and dev.

Rows that hold no conversation are counted by reason; they are refused, or left out where that is asked for.
"""

from __future__ import annotations

import csv
import glob
import io
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any, NamedTuple

from paddle_llm.config.console import say
from paddle_llm.config.errors import UserError
from paddle_llm.data.instruction_formats import FORMATS, BadRow, Conversation, read_row, recognise
from paddle_llm.data.prompted_tasks import PromptTemplates
from paddle_llm.data.sources import ReadOptions, Source, read_blocks
from paddle_llm.data.text_files import COMPRESSIONS

SUFFIXES = {".jsonl": "json", ".json": "json", ".ndjson": "json", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet"}
SPLITS = {"train": ("train",), "dev": ("dev", "valid", "validation", "val", "eval"), "test": ("test",)}
DEFAULT_DATA = "data"
_LOOK_AT = 100
_SHOWN = 5


class Row(NamedTuple):
    """A row of a file, or (value is None) what is wrong with it."""

    line: int
    value: Any
    problem: str = ""


@dataclass
class Loaded:
    """What a set of files held. `reasons`: bad rows by reason; `examples`: the first of them, with file and line."""

    conversations: list[Conversation] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)
    formats: dict[str, str] = field(default_factory=dict)


def find_files(path: str | None, split: str = "train", flag: str = "--dataset_name_or_path") -> list[str]:
    """The files of a split: a file or glob as named (train only); of a folder those called train, dev ... (dev also valid,
    validation, val, eval), or a folder of that name in it; of a folder without such names all files, as train.

    Args:
        path: None stands for ./data, where PaddleNLP's first scripts looked.

    Returns:
        Sorted paths; empty where a dev or test split is not there.

    Raises:
        UserError: nothing to read for train.
    """
    asked = path or DEFAULT_DATA
    if os.path.isdir(asked):
        files = _files_of_split(asked, split)
        has_names = any(_files_of_split(asked, other) for other in SPLITS)
        if not files and split == "train" and not has_names:
            files = _files_in(asked)
    elif split != "train":
        return []
    else:
        files = (
            [asked]
            if os.path.isfile(asked)
            else sorted(f for f in glob.glob(asked, recursive=True) if os.path.isfile(f))
        )
    if not files and split == "train":
        raise UserError(_nothing(path, asked, flag))
    return files


def _nothing(path: str | None, asked: str, flag: str) -> str:
    form = f"a file ({', '.join(SUFFIXES)}, also with {' or '.join(COMPRESSIONS)}) or a folder with train.json and dev.json"
    if path is None:
        return f"no data: {flag} is not given and there is no ./{DEFAULT_DATA}/train.json. Name {form} with {flag}."
    what = "the folder holds no training data" if os.path.isdir(asked) else "no such file or folder"
    return f"{flag} {asked}: {what}. Give {form}."


def _kind(path: str) -> str | None:
    stem, suffix = os.path.splitext(path.lower())
    return SUFFIXES.get(os.path.splitext(stem)[1] if suffix in COMPRESSIONS else suffix)


def _files_in(folder: str) -> list[str]:
    paths = [os.path.join(folder, name) for name in sorted(os.listdir(folder)) if not name.startswith(".")]
    return [path for path in paths if os.path.isfile(path) and _kind(path)]


def _files_of_split(folder: str, split: str) -> list[str]:
    for name in SPLITS[split]:
        found = [path for path in _files_in(folder) if os.path.basename(path).split(".")[0] == name]
        inner = os.path.join(folder, name)
        if os.path.isdir(inner):
            found += _files_in(inner)
        if found:
            return found
    return []


def read_rows(path: str) -> Iterator[Row]:
    """Every row of a file with its line (parquet: its row), from 1.

    Raises:
        UserError: a suffix that says nothing, a file that cannot be read.
    """
    kind, suffix = _kind(path), os.path.splitext(path.lower())[1]
    if kind is None:
        raise UserError(f"{path}: the suffix does not say what it holds ({', '.join(SUFFIXES)}).")
    source = Source(path, "text", suffix if suffix in COMPRESSIONS else "", os.path.getsize(path))
    if kind == "parquet":
        yield from _parquet_rows(source)
    elif kind == "csv":
        yield from _csv_rows(source, "\t" if ".tsv" in os.path.basename(path.lower()) else ",")
    else:
        yield from _json_rows(source)


def _json_rows(source: Source) -> Iterator[Row]:
    blocks = read_blocks([source], ReadOptions("line"))
    first = next(blocks, None)
    if first is None:
        return
    if first.payload.lstrip()[:1] == b"[":
        payload = first.payload + b"".join(block.payload for block in blocks)
        yield from _array_rows(source.path, payload)
        return
    for block in chain([first], blocks):
        yield from _line_rows(block.payload, block.first_row)


def _line_rows(payload: bytes, first_row: int) -> Iterator[Row]:
    for number, line in enumerate(payload.split(b"\n"), first_row):
        if line and not line.isspace():
            try:
                yield Row(number, json.loads(line))
            except ValueError as error:
                what = "not UTF-8" if isinstance(error, UnicodeDecodeError) else "not JSON"
                yield Row(number, None, what)


def _array_rows(path: str, payload: bytes) -> Iterator[Row]:
    """Items of one JSON array, each with the line that it starts on."""
    try:
        text = payload.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8: {error}.") from error
    decoder, line, counted = json.JSONDecoder(), 1, 0
    at = _skip(text, text.index("[") + 1, "")
    while text[at : at + 1] != "]":
        line, counted = line + text.count("\n", counted, at), at
        try:
            value, end = decoder.raw_decode(text, at)
        except ValueError as error:
            raise UserError(f"{path}, line {line}: the JSON array breaks off here: {error}.") from error
        yield Row(line, value)
        at = _skip(text, end, ",")


def _skip(text: str, at: int, also: str) -> int:
    while at < len(text) and text[at] in " \t\r\n" + also:
        at += 1
    return at


def _csv_rows(source: Source, delimiter: str) -> Iterator[Row]:
    payload = b"".join(block.payload for block in read_blocks([source], ReadOptions("file")))
    csv.field_size_limit(1 << 30)
    try:
        reader = csv.DictReader(io.StringIO(payload.decode("utf-8"), newline=""), delimiter=delimiter, strict=True)
        line = 2
        for value in reader:
            if None in value or None in value.values():
                yield Row(line, None, "has another number of cells than the first line")
            else:
                yield Row(line, value)
            line = reader.line_num + 1
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{source.path}: no csv in UTF-8: {error}.") from error


def _parquet_rows(source: Source) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    if source.compression:
        raise UserError(f"{source.path}: parquet is compressed inside; unpack the file first.")
    row = 0
    try:
        with pyarrow.parquet.ParquetFile(source.path) as table:
            for batch in table.iter_batches(batch_size=1024):
                for value in batch.to_pylist():
                    row += 1
                    yield Row(row, value)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{source.path}: cannot be read as parquet: {error}.") from error


def load_conversations(
    files: Iterable[str], data_format: str = "auto", prompt_templates: str | None = None, skip_bad_rows: bool = False
) -> Loaded:
    """Every conversation of the files, in order; which format each was taken for, and why, is said.

    Args:
        data_format: a name of `FORMATS` for every file; auto goes by the keys.
        prompt_templates: a file of templates that turns raw records into conversations, in place of a format.

    Raises:
        UserError: an unknown format, bad rows without skip_bad_rows, no conversation at all.
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


def _load_file(path: str, data_format: str, prompted: PromptTemplates | None, loaded: Loaded) -> None:
    rows = read_rows(path)
    head = list(islice(rows, _LOOK_AT))
    if prompted:
        name, why = "raw records", f"templates of {prompted.path}"
    elif data_format != "auto":
        name, why = data_format, "as asked for"
    else:
        name = recognise([row.value for row in head if isinstance(row.value, dict)], path)
        why = f"by its keys {', '.join(FORMATS[name].required)}"
    before = len(loaded.conversations)
    word = "row" if path.lower().endswith(".parquet") else "line"
    for row in (*head, *rows):
        where = f"{path}, {word} {row.line}"
        try:
            if row.problem:
                raise BadRow(row.problem)
            made = prompted.conversations(row.value, where) if prompted else [read_row(row.value, name, where)]
            loaded.conversations.extend(made)
        except BadRow as bad:
            loaded.reasons[str(bad)] += 1
            if len(loaded.examples) < _SHOWN:
                loaded.examples.append(f"{where}: {bad}")
    loaded.formats[path] = name
    say(f"{path}: {len(loaded.conversations) - before} conversations; format {name}, {why}")


def _judge(loaded: Loaded, skip_bad_rows: bool) -> None:
    bad = sum(loaded.reasons.values())
    if bad:
        reasons = "; ".join(f"{count} x {reason}" for reason, count in loaded.reasons.most_common(_SHOWN))
        told = f"{bad} bad rows ({reasons}). The first:\n  " + "\n  ".join(loaded.examples)
        if not skip_bad_rows:
            raise UserError(f"{told}\nMend them, or leave them out with --skip_bad_rows.")
        say(f"left out: {told}")
    if not loaded.conversations:
        raise UserError(f"{', '.join(loaded.formats) or 'the data'}: holds no conversation.")
