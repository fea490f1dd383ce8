"""Reads rows of csv, tsv and parquet files.

Cells of csv files are kept as text, whereas `datasets` converts columns of numbers. Words such as NA and null are
missing values, as in `datasets`; their number is reported.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from paddle_llm.core.console import say_once
from paddle_llm.core.downloads import HEAD_BYTES, failed_download
from paddle_llm.core.errors import UserError
from paddle_llm.data.corpus.sources import Source
from paddle_llm.data.instructions.json_rows import Row
from paddle_llm.data.text_files import read_text

if TYPE_CHECKING:
    import pyarrow

_BATCH = 1024
# Missing values of pandas.read_csv, which `datasets` uses (pandas 3.0, pandas/_libs/parsers.pyx, STR_NA_VALUES).
_MISSING = frozenset(
    [
        "#N/A",
        "#N/A N/A",
        "#NA",
        "-1.#IND",
        "-1.#QNAN",
        "-NaN",
        "-nan",
        "1.#IND",
        "1.#QNAN",
        "<NA>",
        "N/A",
        "NA",
        "NULL",
        "NaN",
        "None",
        "n/a",
        "nan",
        "null",
    ]
)
_OTHER_DELIMITERS = {";": "semicolons", "\t": "tabs", "|": "vertical bars", ",": "commas"}


def csv_rows(source: Source, delimiter: str) -> Iterator[Row]:
    """Yield the rows of a csv file, whose first line has the names.

    Quoted cells may contain line ends; missing cells are null.

    Args:
        source: The file.
        delimiter: Separator of the cells.

    Raises:
        UserError: If quotes do not match, two columns have the same name, or the cells have another delimiter.
    """
    text = read_text(source.path)
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise UserError(f"{source.path}, line {line}: NUL character, which csv does not allow. Write the file again.")
    missing = 0
    csv.field_size_limit(1 << 30)
    cells = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        names = _column_names(cells)
        _check_names(source.path, names)
        _check_delimiter(source.path, names)
        reader = csv.DictReader([], names)
        reader.reader, reader.line_num = cells, cells.line_num
        line = reader.line_num + 1
        for value in reader:
            if None in value:
                yield Row(line, None, "more cells than the first line")
            else:
                found = {name: None if cell in _MISSING else cell for name, cell in value.items()}
                missing += sum(found[name] is None and cell is not None for name, cell in value.items())
                yield Row(line, found)
            line = reader.line_num + 1
        if missing:
            say_once(
                f"{source.path}: {missing} cells such as NA, null, None and nan are read as missing values, as in datasets"
            )
    except csv.Error as error:
        raise UserError(
            f"{source.path}: cannot be read as csv: line {cells.line_num}: {error}. Correct the quotes."
        ) from error


def _column_names(cells: Iterator[list[str]]) -> list[str]:
    """Return the names in the first nonempty line. A column without a name is named as in pandas: `Unnamed: 0`."""
    first = next((row for row in cells if row), [])
    return [name or f"Unnamed: {number}" for number, name in enumerate(first)]


def parquet_rows(source: Source) -> Iterator[Row]:
    """Yield the rows of a parquet file.

    Raises:
        UserError: If the file cannot be read, or two columns have the same name.
    """
    import pyarrow
    import pyarrow.parquet

    if source.compression:
        raise UserError(f"{source.path}: a parquet file compressed with {source.compression}. Decompress it.")
    row = 0
    with open(source.path, "rb") as stream:
        problem = failed_download(stream.read(HEAD_BYTES))
    if problem is not None:
        raise UserError(f"{source.path}: {problem}.")
    try:
        with pyarrow.parquet.ParquetFile(source.path) as table:
            _check_names(source.path, table.schema_arrow.names)
            for batch in table.iter_batches(batch_size=_BATCH):
                for value in _objects(source.path, batch):
                    row += 1
                    yield Row(row, value)
    except (pyarrow.ArrowException, OSError, KeyError) as error:
        raise UserError(f"{source.path}: cannot be read as parquet: {error}. Write the file again.") from error


def _objects(path: str, batch: pyarrow.RecordBatch) -> list[dict[str, Any]]:
    """Return the rows of a batch as Python objects.

    Raises:
        UserError: If a value cannot be converted: a date after the year 9999, or text that is not UTF-8.
    """
    try:
        return batch.to_pylist(maps_as_pydicts="strict")
    except (ValueError, OverflowError):
        for name in batch.schema.names:
            try:
                batch.column(name).to_pylist(maps_as_pydicts="strict")
            except (ValueError, OverflowError) as error:
                raise UserError(
                    f"{path}: column {name!r} has a value that cannot be read: {error}. Correct or drop the column."
                ) from None
        raise


def without_nulls(value: Any) -> Any:
    """Remove null keys from a value at any depth: after a merge of several schemas, objects have the keys of all."""
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [without_nulls(item) for item in value]
    return value


def _check_delimiter(path: str, names: list[str]) -> None:
    """Reject a table of one column whose name contains another delimiter."""
    found = [one for one in _OTHER_DELIMITERS if len(names) == 1 and one in names[0]]
    if found:
        wanted = "tabs" if ".tsv" in path.lower() else "commas"
        raise UserError(
            f"{path}: cells are separated by {_OTHER_DELIMITERS[found[0]]}, not by {wanted}. Write the file with {wanted}, or as jsonl."
        )


def _check_names(path: str, names: list[str]) -> None:
    duplicates = sorted({name for name in names if names.count(name) > 1})
    if duplicates:
        raise UserError(f"{path}: two columns are named {duplicates[0]!r}. Rename one.")
