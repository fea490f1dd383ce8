"""Finds input files and reads documents from them: text, jsonl and parquet, plain, .gz or .zst, in bounded memory.

Reading has two parts, so that one process can read and many can parse: `read_blocks` cuts files into blocks at document
boundaries, and `parse_block` splits a block into documents and reports bad rows.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from paddle_llm.core.errors import UserError
from paddle_llm.core.json_files import parse_json
from paddle_llm.data.json_types import describe_type
from paddle_llm.data.text_files import TextStream, compression_of

KINDS = {".txt": "text", ".text": "text", ".md": "text", ".jsonl": "jsonl", ".json": "jsonl", ".ndjson": "jsonl"}
KINDS |= {".parquet": "parquet"}
DOCUMENT_MODES = ("line", "blank_line", "file")
BLOCK_BYTES = 1 << 20
_BLANK_LINE = re.compile(rb"\n[ \t\r]*\n")
_LEADING_BLANKS = re.compile(rb"(?:[ \t\r]*\n)*")


@dataclass(frozen=True)
class Source:
    """One input file.

    Attributes:
        path: Path of the file.
        kind: "text", "jsonl" or "parquet".
        compression: "", ".gz" or ".zst".
        size: Size on disk in bytes.
    """

    path: str
    kind: str
    compression: str
    size: int


@dataclass(frozen=True)
class ReadOptions:
    """How documents are found in a file.

    Attributes:
        document: What one document is in a text file, one of DOCUMENT_MODES.
        text_key: Key (jsonl) or column (parquet) of the text.
    """

    document: str = "line"
    text_key: str = "text"


@dataclass(frozen=True)
class Block:
    """Whole documents of one file, not yet parsed.

    Attributes:
        source: The file.
        first_row: Number (from 1) of its first line or row.
        payload: Bytes of the documents, or values of the rows of a parquet file.
        read_bytes: Number of bytes of the file that it was read from.
    """

    source: Source
    first_row: int
    payload: bytes | list[object]
    read_bytes: int


class Document(NamedTuple):
    """The text of a row; or, if `text` is None, the reason why the row has no text."""

    row: int
    text: str | None
    problem: str = ""


def find_sources(inputs: list[str], kind: str = "auto") -> list[Source]:
    """Return the files meant by paths: files, folders (searched recursively) and globs (`**` too).

    Files are in the order of `inputs`, and sorted by name within each. A file that is named twice is read once.

    Args:
        inputs: Paths and globs.
        kind: "text", "jsonl" or "parquet" for every file; "auto" chooses by suffix.

    Raises:
        UserError: If a path does not exist, no file is found, or the suffix of a named file is unknown.
    """
    found: dict[str, Source] = {}
    for item in inputs:
        for path, explicit in _expand(item):
            source = _source(path, kind)
            if source is None and explicit:
                raise UserError(
                    f"{path}: unknown suffix ({', '.join(KINDS)} are known, also with .gz or .zst). "
                    "Set --format to text, jsonl or parquet."
                )
            if source is not None:
                found.setdefault(os.path.realpath(path), source)
    if not found:
        raise UserError(
            f"--input {' '.join(inputs)}: no file to read. Give files with one of the suffixes {', '.join(KINDS)}, "
            "also compressed."
        )
    return list(found.values())


def _expand(item: str) -> Iterator[tuple[str, bool]]:
    """Yield (path, whether it was named explicitly) of each file meant by one path."""
    if os.path.isdir(item):
        for folder, folders, names in os.walk(item):
            folders.sort()
            yield from ((os.path.join(folder, name), False) for name in sorted(names) if not name.startswith("."))
    elif os.path.isfile(item):
        yield item, True
    elif glob.has_magic(item):
        matches = sorted(path for path in glob.glob(item, recursive=True) if os.path.isfile(path))
        if not matches:
            raise UserError(f"--input {item}: no file matches. Correct the pattern.")
        yield from ((path, False) for path in matches)
    else:
        raise UserError(f"--input {item}: no such file or folder. Correct the path.")


def _source(path: str, kind: str) -> Source | None:
    compression = compression_of(path)
    by_suffix = KINDS.get(os.path.splitext(path.lower().removesuffix(compression))[1])
    chosen = by_suffix if kind == "auto" else kind
    return None if chosen is None else Source(path, chosen, compression, os.path.getsize(path))


def read_blocks(sources: list[Source], options: ReadOptions, block_bytes: int = BLOCK_BYTES) -> Iterator[Block]:
    """Cut files into blocks of about `block_bytes`, each with whole documents, in order.

    Raises:
        UserError: If a file cannot be read to its end.
    """
    for source in sources:
        try:
            if source.kind == "parquet":
                yield from _parquet_blocks(source, options)
            else:
                yield from _byte_blocks(source, options, block_bytes)
        except OSError as error:
            reason = error or type(error).__name__
            raise UserError(f"{source.path}: cannot be read to its end: {reason}. Copy the file again.") from error


def _byte_blocks(source: Source, options: ReadOptions, block_bytes: int) -> Iterator[Block]:
    mode = "line" if source.kind == "jsonl" else options.document
    row, counted, pending = 1, 0, []
    with TextStream(source.path, source.compression or None) as stream:
        stream.report()
        while chunk := stream.read(block_bytes):
            cut = _last_boundary(chunk, mode)
            if not cut:
                pending.append(chunk)
                continue
            payload, pending = b"".join([*pending, chunk[:cut]]), [chunk[cut:]]
            yield Block(source, row, payload, stream.consumed - counted)
            row, counted = row + payload.count(b"\n"), stream.consumed
        if payload := b"".join(pending):
            yield Block(source, row, payload, stream.consumed - counted)


def _last_boundary(chunk: bytes, mode: str) -> int:
    """Return where the last whole document of a chunk ends; 0 if it may continue in the next chunk."""
    if mode == "line":
        return chunk.rfind(b"\n") + 1
    if mode == "blank_line":
        return max((match.end() for match in _BLANK_LINE.finditer(chunk)), default=0)
    return 0


def _parquet_blocks(source: Source, options: ReadOptions) -> Iterator[Block]:
    import pyarrow
    import pyarrow.parquet

    if source.compression:
        raise UserError(f"{source.path}: compressed parquet file: parquet compresses its content. Decompress the file.")
    try:
        with pyarrow.parquet.ParquetFile(source.path) as table:
            names = table.schema_arrow.names
            if options.text_key not in names:
                raise UserError(
                    f"{source.path}: no column {options.text_key!r}; it has {', '.join(names)}. Set --text_key to one of them."
                )
            row, bytes_per_row = 1, source.size / max(table.metadata.num_rows, 1)
            for batch in table.iter_batches(batch_size=1024, columns=[options.text_key]):
                texts = batch.column(0).to_pylist()
                yield Block(source, row, texts, int(len(texts) * bytes_per_row))
                row += len(texts)
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise OSError(str(error)) from error


def parse_block(block: Block, options: ReadOptions) -> Iterator[Document]:
    """Yield the documents of a block, in order. A bad row is a Document without text. Blank lines are skipped."""
    if isinstance(block.payload, list):
        for row, value in enumerate(block.payload, block.first_row):
            yield _text_document(row, value, options.text_key)
    elif block.source.kind == "jsonl":
        for row, line in enumerate(_lines(block.payload), block.first_row):
            if line and not line.isspace():
                yield _json_row(row, line, options.text_key)
    else:
        yield from _texts(block.payload, block.first_row, options.document)


def _lines(payload: bytes) -> Sequence[str | bytes]:
    """Return lines as text, decoded together; as bytes if one of them is not UTF-8 and has to be found."""
    try:
        return payload.decode("utf-8").split("\n")
    except UnicodeDecodeError:
        return payload.split(b"\n")


def _json_row(row: int, line: str | bytes, key: str) -> Document:
    try:
        value = parse_json(line)
        text = value[key]
    except UnicodeDecodeError as error:
        return Document(row, None, f"not UTF-8: {error}")
    except ValueError as error:
        hint = " (one JSON array? write one object per line)" if row == 1 and line.lstrip()[:1] in ("[", b"[") else ""
        return Document(row, None, f"not JSON: {error}{hint}")
    except (KeyError, TypeError, IndexError):
        if not isinstance(value, dict):
            return Document(row, None, f"{describe_type(value)}, not an object")
        return Document(row, None, f"no key {key!r}; it has {', '.join(value) or 'none'}; set it with --text_key")
    return _text_document(row, text, key)


def _text_document(row: int, value: object, key: str) -> Document:
    if isinstance(value, str):
        return Document(row, value)
    return Document(row, None, f"{key!r} is {describe_type(value)}, not text")


def _texts(payload: bytes, first_row: int, mode: str) -> Iterator[Document]:
    row = first_row
    for part, rows in _parts(payload, mode):
        if part and not part.isspace():
            try:
                yield Document(row, part.decode("utf-8"))
            except UnicodeDecodeError as error:
                yield Document(row, None, f"not UTF-8: {error}")
        row += rows


def _parts(payload: bytes, mode: str) -> Iterator[tuple[bytes, int]]:
    """Yield (bytes of a document, number of line ends up to the next one)."""
    if mode == "line":
        yield from ((line.removesuffix(b"\r"), 1) for line in payload.split(b"\n"))
    elif mode == "blank_line":
        at = 0
        for end, following in [*((m.start(), m.end()) for m in _BLANK_LINE.finditer(payload)), (len(payload),) * 2]:
            # A block boundary may have cut a run of blank lines; the rest of the run is not text.
            blanks = _LEADING_BLANKS.match(payload, at)
            begin = blanks.end() if blanks else at
            yield b"", payload.count(b"\n", at, begin)
            yield payload[begin:end].rstrip(b"\r\n"), payload.count(b"\n", begin, following)
            at = following
    else:
        yield payload, 0


def describe_bad_row(source: Source, document: Document) -> str:
    """Return the file, the number and the problem of a bad row."""
    return f"{source.path}, {'row' if source.kind == 'parquet' else 'line'} {document.row}: {document.problem}"
