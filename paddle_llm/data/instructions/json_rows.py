"""Reads rows of JSON files: one object per line, arrays, objects over several lines, and concatenations of these.

A file is read completely or rejected: text between or after the values is an error. In a file with one object per line, a
line that is not JSON is a bad row, and the other lines are read.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

from paddle_llm.core.console import say_once
from paddle_llm.core.errors import UserError
from paddle_llm.core.json_files import parse_json
from paddle_llm.data.corpus.sources import ReadOptions, Source, read_blocks

_WRAPPERS = ("data", "rows", "examples", "instances", "records", "samples", "items")
_BLANKS = " \t\r\n"


RowValue = Mapping[str, Any]  # value of a row that is an object


class Row(NamedTuple):
    """A row of a file.

    Attributes:
        line: Line on which it starts, from 1; row of a parquet file.
        value: The row; None if it cannot be read.
        problem: Reason why it cannot be read.
    """

    line: int
    value: Any
    problem: str = ""


class _DuplicateKey(ValueError):
    pass


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise _DuplicateKey(f"duplicate key {next(key for key in keys if keys.count(key) > 1)!r}")
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_object)


def json_rows(source: Source) -> Iterator[Row]:
    """Yield every row of a JSON file.

    Raises:
        UserError: If the file is an array, or objects over several lines, and ends early or has other text after it.
    """
    blocks = _text_blocks(source)
    first_row, payload = next((block for block in blocks if block[1] and not block[1].isspace()), (0, b""))
    if not payload:
        return
    second = next(blocks, None)
    others = chain([second] if second else [], blocks)
    one_line = second is None and b"\n" not in payload.strip()
    if _one_object_per_line(payload, one_line):
        yield from _line_rows(payload, first_row)
        for row, text in others:
            yield from _line_rows(text, row)
        return
    yield from _values(source.path, payload + b"".join(text for _, text in others), first_row)


def _text_blocks(source: Source) -> Iterator[tuple[int, bytes]]:
    """Yield the first line and the bytes of each block of a text file."""
    for block in read_blocks([source], ReadOptions("line")):
        assert isinstance(block.payload, bytes), "only parquet files give rows"
        yield block.first_row, block.payload


def _one_object_per_line(payload: bytes, one_line: bool) -> bool:
    """Return whether the first nonblank line is a complete value, or not the beginning of one.

    A file with a single line does not count: it may be one object that contains the rows.
    """
    line = next(line for line in payload.split(b"\n") if line.strip())
    if line.lstrip()[:1] == b"[":
        return False
    try:
        parse_json(line)
    except json.JSONDecodeError as error:
        # For an object that continues on the next line, the error is at the end of this line.
        return not (line.lstrip()[:1] == b"{" and error.pos >= len(error.doc.rstrip(_BLANKS)))
    except (ValueError, RecursionError):
        return True
    return not one_line


def _line_rows(payload: bytes, first_row: int) -> Iterator[Row]:
    try:
        lines: Sequence[str | bytes] = payload.decode("utf-8").split("\n")
    except UnicodeDecodeError:
        lines = payload.split(b"\n")
    for number, line in enumerate(lines, first_row):
        if line and not line.isspace():
            yield from _rows_of_line(number, line)


def _rows_of_line(number: int, line: str | bytes) -> Iterator[Row]:
    try:
        text = line if isinstance(line, str) else line.decode("utf-8")
        values = list(_sequence(text.removeprefix("\ufeff")))  # a mark inside a file: files were concatenated
    except UnicodeDecodeError:
        yield Row(number, None, "not UTF-8")
    except _DuplicateKey as error:
        yield Row(number, None, str(error))
    except RecursionError:
        yield Row(number, None, "JSON nested too deeply")
    except json.JSONDecodeError as error:
        yield Row(number, None, _json_problem(error))
    except ValueError:
        yield Row(number, None, "not JSON")
    else:
        yield from (Row(number, value) for _, value in values)


def _json_problem(error: json.JSONDecodeError) -> str:
    """Name the usual mistakes in files that were not written by a JSON library."""
    if error.msg.startswith("Invalid control character"):
        return "not JSON: a tab or other control character in a text; escape it, as \\t"
    if error.msg.startswith("Unterminated string"):
        return "not JSON: a text is not closed at the end of the line; write \\n for a line end in a text"
    found = error.doc[error.pos : error.pos + 1]
    causes = {",": "a comma after the object", "'": "single quotes", "/": "a comment", "#": "a comment"}
    return f"not JSON: {causes[found]}" if found in causes else "not JSON"


def _sequence(text: str, at: int = 0) -> Iterator[tuple[int, Any]]:
    """Yield (position, value) of JSON values separated only by blanks."""
    at = _skip(text, at)
    while at < len(text):
        value, end = _DECODER.raw_decode(text, at)
        yield at, value
        at = _skip(text, end)


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at] in _BLANKS:
        at += 1
    return at


def _values(path: str, payload: bytes, first_row: int) -> Iterator[Row]:
    """Yield the rows of arrays and of objects over several lines, each with the line on which it starts."""
    try:
        text = payload.decode("utf-8")
    except UnicodeDecodeError as error:
        line = payload.count(b"\n", 0, error.start) + first_row
        raise UserError(f"{path}, line {line}: not UTF-8: {error.reason}. Correct the line.") from error
    line, counted, at = first_row, 0, 0
    values = _items(text)
    singles = 0
    while True:
        try:
            at, value, single = next(values)
        except StopIteration:
            return
        except (_Broken, _DuplicateKey, RecursionError) as error:
            broken = error.at if isinstance(error, _Broken) else at
            line += text.count("\n", counted, broken)
            reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
            raise UserError(
                f"{path}, line {line}: {reason}. Correct the file, or write one JSON object per line."
            ) from None
        line, counted = line + text.count("\n", counted, at), at
        singles += single
        if single and singles == 1 and (inner := _rows_of_wrapper(path, value)) is not None:
            if _skip(text, _DECODER.raw_decode(text, at)[1]) < len(text):
                raise UserError(
                    f"{path}: text after the object that contains the rows. Write one JSON object per line."
                )
            yield from (Row(line, item) for item in inner)
            return
        yield Row(line, value)


class _Broken(ValueError):
    def __init__(self, message: str, at: int) -> None:
        super().__init__(message)
        self.at = at


def _items(text: str) -> Iterator[tuple[int, Any, bool]]:
    """Yield (position, row, whether it is outside an array) for a sequence of arrays and objects."""
    at = _skip(text, 0)
    while at < len(text):
        if text[at] == "[":
            at = yield from _array(text, at)
        elif text[at] == "{":
            value, end = _decode(text, at, "incomplete JSON object")
            yield at, value, True
            at = end
        else:
            raise _Broken(f"text after the rows is not JSON: {text[at : at + 30].splitlines()[0]!r}", at)
        at = _skip(text, at)


def _array(text: str, at: int) -> Generator[tuple[int, Any, bool], None, int]:
    """Yield the items of an array that starts at `at`. Returns the position after it."""
    at = _skip(text, at + 1)
    comma = True
    while text[at : at + 1] != "]":
        if not comma:
            raise _Broken("incomplete JSON array: missing comma", at)
        value, end = _decode(text, at, "incomplete JSON array")
        yield at, value, False
        at = _skip(text, end)
        comma = text[at : at + 1] == ","
        at = _skip(text, at + 1) if comma else at
        if comma and text[at : at + 1] == "]":
            raise _Broken("a comma before the end of the JSON array", at)
    return at + 1


def _decode(text: str, at: int, what: str) -> tuple[Any, int]:
    try:
        return _DECODER.raw_decode(text, at)
    except _DuplicateKey as error:
        raise _Broken(str(error), at) from None
    except json.JSONDecodeError as error:
        raise _Broken(f"{what}: {error.msg}", min(error.pos, len(text))) from None
    except ValueError as error:  # an integer of thousands of digits
        raise _Broken(f"{what}: {error}", at) from None


def _rows_of_wrapper(path: str, value: Any) -> list[Any] | None:
    """Return the rows of a file that is one object, such as {"version": ..., "data": [...]}; None if it is a row.

    Raises:
        UserError: If the object contains several lists of rows, such as splits.
    """
    if not isinstance(value, dict):
        return None
    lists = [
        key for key, item in value.items() if isinstance(item, list) and item and all(isinstance(i, dict) for i in item)
    ]
    known = [key for key in lists if key.lower() in _WRAPPERS]
    scalars = all(not isinstance(item, dict | list) for key, item in value.items() if key not in lists)
    if len(lists) == 1 and known and scalars:
        others = [key for key in value if key not in lists]
        say_once(
            f"{path}: rows are read from the key {lists[0]!r}"
            + (f"; ignored keys: {', '.join(others)}" if others else "")
        )
        return value[lists[0]]
    splits = [key for key in lists if key.lower() in ("train", "dev", "valid", "validation", "val", "eval", "test")]
    if splits or len(known) > 1:
        keys = splits or known
        raise UserError(
            f"{path}: one object contains the rows of {', '.join(keys)}. Write each to its own file, one JSON object per line."
        )
    return None
