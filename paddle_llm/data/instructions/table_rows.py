"""Rows of csv, tsv and parquet files.

Cells of csv are text as written: `datasets` turns columns of numbers into numbers, and the words NA, null and None into nulls.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import Any

from paddle_llm.config.errors import UserError
from paddle_llm.data.instructions.json_rows import Row
from paddle_llm.data.sources import Source
from paddle_llm.data.text_files import read_text

_BATCH = 1024


def csv_rows(source: Source, delimiter: str) -> Iterator[Row]:
    """Yield the rows of a file with cells, named by its first line. Cells may hold line ends between quotes; missing cells are null.

    Raises:
        UserError: If the quotes do not match, or two columns have one name.
    """
    text = read_text(source.path)
    csv.field_size_limit(1 << 30)
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        _check_names(source.path, list(reader.fieldnames or ()))
        line = reader.line_num + 1
        for value in reader:
            if None in value:
                yield Row(line, None, "has more cells than the first line")
            else:
                yield Row(line, value)
            line = reader.line_num + 1
    except csv.Error as error:
        raise UserError(
            f"{source.path}: cannot be read as csv: line {reader.line_num}: {error}. Correct the quotes."
        ) from error


def parquet_rows(source: Source) -> Iterator[Row]:
    """Yield the rows of a parquet file.

    Raises:
        UserError: If the file cannot be read, or two columns have one name.
    """
    import pyarrow
    import pyarrow.parquet

    if source.compression:
        raise UserError(f"{source.path}: a parquet file inside {source.compression}. Unpack it first.")
    row = 0
    try:
        with pyarrow.parquet.ParquetFile(source.path) as table:
            _check_names(source.path, table.schema_arrow.names)
            for batch in table.iter_batches(batch_size=_BATCH):
                for value in batch.to_pylist(maps_as_pydicts="strict"):
                    row += 1
                    yield Row(row, value)
    except (pyarrow.ArrowException, OSError, KeyError) as error:
        raise UserError(f"{source.path}: cannot be read as parquet: {error}. Write the file again.") from error


def without_nulls(value: Any) -> Any:
    """A value without the keys, at any depth, whose value is null: where files of several schemas were joined, every object has the
    keys of all."""
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [without_nulls(item) for item in value]
    return value


def _check_names(path: str, names: list[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"{path}: two columns are named {twice[0]!r}. Rename one.")
