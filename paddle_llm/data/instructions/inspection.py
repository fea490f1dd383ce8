"""What `data inspect --finetune` shows of files: which file is which split, its encoding, format and rows, and what is left out."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass

from paddle_llm.config.local_files.split_names import DEV, TEST, TRAIN, DataFolder, kind_of_file
from paddle_llm.core.errors import UserError
from paddle_llm.data.corpus.blend import parse_weighted_paths
from paddle_llm.data.instructions.data_files import data_folder
from paddle_llm.data.instructions.files import RowReader
from paddle_llm.data.instructions.formats import BadRow
from paddle_llm.data.instructions.prompted_tasks import PromptTemplates
from paddle_llm.data.instructions.rows import read_rows
from paddle_llm.data.text_files import TextStream, compression_of

_LOOK_AT = 100


@dataclass(frozen=True)
class FileReport:
    """One file.

    Attributes:
        split: train, dev or test.
        encoding: Text encoding and compression; of a parquet file its format.
        format: The format of the rows and how it was found, or why the file cannot be read.
        rows: Number of rows that are conversations.
        bad_rows: Number of rows that are not.
    """

    path: str
    split: str
    encoding: str
    format: str
    rows: int
    bad_rows: int

    def __str__(self) -> str:
        bad = f", {self.bad_rows:,} bad" if self.bad_rows else ""
        return f"{self.split:<5}  {self.path}: {self.rows:,} rows{bad}; {self.encoding}; {self.format}"


def describe_data(value: str, data_format: str = "auto", prompt_templates: str | None = None) -> list[str]:
    """One line for each file of a folder, pattern, file or blend, and one for each file that is left out.

    Raises:
        UserError: If a blend is malformed, or the names of files are ambiguous.
    """
    blend = None if os.path.exists(value) else parse_weighted_paths(value, "--finetune")
    lines: list[str] = []
    for path in [path for _, path in blend] if blend else [value]:
        found = DataFolder(path, {TRAIN: [path]}) if os.path.isfile(path) else data_folder(path).check()
        for split in (TRAIN, DEV, TEST):
            lines += [str(_describe(file, split, data_format, prompt_templates)) for file in found.of(split)]
        lines += [f"left out  {file}: {reason}" for file, reason in sorted(found.left_out.items())]
    return lines


def _describe(path: str, split: str, data_format: str, prompt_templates: str | None) -> FileReport:
    prompted = PromptTemplates(prompt_templates) if prompt_templates else None
    counts: Counter[bool] = Counter()
    try:
        rows = list(read_rows(path))
        reader = RowReader(path, data_format, prompted)
        reader.look_at(rows[:_LOOK_AT])
        for row in rows:
            try:
                made = [] if row.problem else list(reader.read(row.value, path))
                counts[bool(made)] += len(made) or 1
            except BadRow:
                counts[False] += 1
        reader.check_columns()
        form = f"format {reader.describe()}"
    except UserError as error:
        form = f"cannot be read: {str(error).splitlines()[0]}"
    return FileReport(path, split, _encoding(path), form, counts[True], counts[False])


def _encoding(path: str) -> str:
    if kind_of_file(path) == "parquet":
        return "parquet"
    try:
        with TextStream(path) as stream:
            packed = compression_of(path)
            return f"{stream.encoding}{f' in {packed}' if packed else ''}"
    except UserError as error:
        return str(error)
