"""Describes instruction files for `data inspect --finetune`: split, encoding, format, number of rows, skipped files."""

from __future__ import annotations

import os
from dataclasses import dataclass

from paddle_llm.config.local_files.split_names import DEV, TEST, TRAIN, DataFolder, kind_of_file
from paddle_llm.core.counts import counted
from paddle_llm.core.errors import UserError
from paddle_llm.data.corpus.blend import parse_weighted_paths
from paddle_llm.data.instructions.data_files import data_folder
from paddle_llm.data.instructions.files import read_file
from paddle_llm.data.instructions.prompted_tasks import PromptTemplates
from paddle_llm.data.text_files import TextStream, compression_of


@dataclass(frozen=True)
class FileReport:
    """Description of one file.

    Attributes:
        path: Path of the file.
        split: "train", "dev" or "test".
        encoding: Text encoding and compression; "parquet" for a parquet file.
        format: Format of the rows and how it was chosen, or why the file cannot be read.
        rows: Number of conversations.
        bad_rows: Number of bad rows.
    """

    path: str
    split: str
    encoding: str
    format: str
    rows: int
    bad_rows: int

    def __str__(self) -> str:
        bad = f", {self.bad_rows:,} bad" if self.bad_rows else ""
        return f"{self.split:<5}  {self.path}: {counted(self.rows, 'row')}{bad}; {self.encoding}; {self.format}"


def describe_data(value: str, data_format: str = "auto", prompt_templates: str | None = None) -> list[str]:
    """Return one line for each file of a folder, pattern, file or blend, and one for each skipped file.

    Args:
        value: Value of --finetune.
        data_format: Name of the format of all files, or "auto".
        prompt_templates: File of templates that turn raw records into conversations.

    Raises:
        UserError: If a blend is malformed or file names are ambiguous.
    """
    blend = None if os.path.exists(value) else parse_weighted_paths(value, "--finetune")
    lines: list[str] = []
    for path in [path for _, path in blend] if blend else [value]:
        found = DataFolder(path, {TRAIN: [path]}) if os.path.isfile(path) else data_folder(path).check()
        for split in (TRAIN, DEV, TEST):
            lines += [str(_describe(file, split, data_format, prompt_templates)) for file in found.of(split)]
        lines += [f"skipped  {file}: {reason}" for file, reason in sorted(found.skipped.items())]
    return lines


def _describe(path: str, split: str, data_format: str, prompt_templates: str | None) -> FileReport:
    prompted = PromptTemplates(prompt_templates) if prompt_templates else None
    rows = bad_rows = 0
    try:
        content = read_file(path, data_format, prompted)
        rows, bad_rows = len(content.conversations), len(content.bad_rows)
        description = f"format {content.reader.describe()}"
    except UserError as error:
        description = f"cannot be read: {str(error).splitlines()[0]}"
    return FileReport(path, split, _encoding(path), description, rows, bad_rows)


def _encoding(path: str) -> str:
    if kind_of_file(path) == "parquet":
        return "parquet"
    try:
        with TextStream(path) as stream:
            packed = compression_of(path)
            return f"{stream.encoding}{f' in {packed}' if packed else ''}"
    except UserError as error:
        return str(error)
