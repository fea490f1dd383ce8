"""Reads the rows of an instruction file of any format."""

from __future__ import annotations

import os
from collections.abc import Iterator

from paddle_llm.config.local_files.split_names import SUFFIXES, kind_of_file
from paddle_llm.core.errors import UserError
from paddle_llm.data.corpus.sources import Source
from paddle_llm.data.instructions.json_rows import Row, json_rows
from paddle_llm.data.instructions.table_rows import csv_rows, parquet_rows
from paddle_llm.data.text_files import compression_of


def read_rows(path: str) -> Iterator[Row]:
    """Yield every row of a file with its line (for parquet its row), from 1.

    Raises:
        UserError: If the suffix is unknown or the file cannot be read.
    """
    kind, compression = kind_of_file(path), compression_of(path)
    if kind is None:
        raise UserError(
            f"{path}: unknown suffix. Use a file with one of {', '.join(SUFFIXES)}, optionally with .gz or .zst."
        )
    source = Source(path, "text", compression, os.path.getsize(path))
    if kind == "parquet":
        yield from parquet_rows(source)
    elif kind == "csv":
        name = os.path.basename(path).lower().removesuffix(compression)
        yield from csv_rows(source, "\t" if name.endswith(".tsv") else ",")
    else:
        yield from json_rows(source)
