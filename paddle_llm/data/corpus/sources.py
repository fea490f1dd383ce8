"""Finds input files and reads documents from them: text, jsonl and parquet, plain, .gz or .zst, in bounded memory.

Reading is in two halves, so that one process can read and many can parse: `read_blocks` cuts files into blocks at borders
of documents, `parse_block` turns a block into documents or says which row is bad.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from paddle_llm.core.errors import UserError
from paddle_llm.core.json_files import parse_json
from paddle_llm.data.text_files import TextStream, compression_of

KINDS = {".txt": "text", ".text": "text", ".md": "text", ".jsonl": "jsonl", ".json": "jsonl", ".ndjson": "jsonl"}
KINDS |= {".parquet": "parquet"}
DOCUMENT_MODES = ("line", "blank_line", "file")
BLOCK_BYTES = 1 << 20
_BLANK_LINE = re.compile(rb"\n[ \t\r]*\n")
_LEADING_BLANKS = re.compile(rb"(?:[ \t\r]*\n)*")


@dataclass(frozen=True)
class Source:
    """One input file. kind: text, jsonl or parquet; compression: "", ".gz" or ".zst"; size in bytes, on disk."""

    path: str
    kind: str
    compression: str
    size: int


@dataclass(frozen=True)
class ReadOptions:
    """How documents are found. document: what one is in a text file; text_key: jsonl key or parquet column."""

    document: str = "line"
    text_key: str = "text"


@dataclass(frozen=True)
class Block:
    """Whole documents of one file, not yet parsed. `first_row`: number (from 1) of the line or row that it starts with;
    `read_bytes`: bytes of the file behind it."""

    source: Source
    first_row: int
    payload: bytes | list[Any]
    read_bytes: int


class Document(NamedTuple):
    """A text, or (text is None) a row that holds none, with the reason."""

    row: int
    text: str | None
    problem: str = ""


def find_sources(inputs: list[str], kind: str = "auto") -> list[Source]:
    """The files behind what was typed: files, folders (walked), globs (`**` too). The order is that of `inputs`, names
    sorted within each; a file named twice is read once.

    Args:
        kind: text, jsonl or parquet for every file; auto goes by the suffix.

    Raises:
        UserError: nothing there, or a suffix that says nothing.
    """
    found: dict[str, Source] = {}
    for item in inputs:
        for path, explicit in _expand(item):
            source = _source(path, kind)
            if source is None and explicit:
                raise UserError(
                    f"{path}: the suffix does not say what it holds ({', '.join(KINDS)}, also with .gz or .zst). "
                    "Say it with --format text, jsonl or parquet."
                )
            if source is not None:
                found.setdefault(os.path.realpath(path), source)
    if not found:
        raise UserError(f"--input {' '.join(inputs)}: no file to read ({', '.join(KINDS)}, also compressed).")
    return list(found.values())


def _expand(item: str) -> Iterator[tuple[str, bool]]:
    """(path, whether it was named itself) of each file behind one word of the command line."""
    if os.path.isdir(item):
        for folder, folders, names in os.walk(item):
            folders.sort()
            yield from ((os.path.join(folder, name), False) for name in sorted(names) if not name.startswith("."))
    elif os.path.isfile(item):
        yield item, True
    elif glob.has_magic(item):
        matches = sorted(path for path in glob.glob(item, recursive=True) if os.path.isfile(path))
        if not matches:
            raise UserError(f"--input {item}: no file matches.")
        yield from ((path, False) for path in matches)
    else:
        raise UserError(f"--input {item}: no such file or folder.")


def _source(path: str, kind: str) -> Source | None:
    compression = compression_of(path)
    by_suffix = KINDS.get(os.path.splitext(path.lower().removesuffix(compression))[1])
    chosen = by_suffix if kind == "auto" else kind
    return None if chosen is None else Source(path, chosen, compression, os.path.getsize(path))


def read_blocks(sources: list[Source], options: ReadOptions, block_bytes: int = BLOCK_BYTES) -> Iterator[Block]:
    """Cut files into blocks of about block_bytes, each of whole documents, in order.

    Raises:
        UserError: a file that cannot be read to its end, with its name.
    """
    for source in sources:
        try:
            if source.kind == "parquet":
                yield from _parquet_blocks(source, options)
            else:
                yield from _byte_blocks(source, options, block_bytes)
        except OSError as error:
            raise UserError(f"{source.path}: cannot be read to its end: {error or type(error).__name__}.") from error


def _byte_blocks(source: Source, options: ReadOptions, block_bytes: int) -> Iterator[Block]:
    mode = "line" if source.kind == "jsonl" else options.document
    row, counted, pending = 1, 0, []
    with TextStream(source.path, source.compression or None) as stream:
        stream.report()
        while chunk := stream.read(block_bytes):
            cut = _last_border(chunk, mode)
            if not cut:
                pending.append(chunk)
                continue
            payload, pending = b"".join([*pending, chunk[:cut]]), [chunk[cut:]]
            yield Block(source, row, payload, stream.consumed - counted)
            row, counted = row + payload.count(b"\n"), stream.consumed
        if payload := b"".join(pending):
            yield Block(source, row, payload, stream.consumed - counted)


def _last_border(chunk: bytes, mode: str) -> int:
    """Where the last whole document of a chunk ends; 0 when it may go on in the next chunk."""
    if mode == "line":
        return chunk.rfind(b"\n") + 1
    if mode == "blank_line":
        return max((match.end() for match in _BLANK_LINE.finditer(chunk)), default=0)
    return 0


def _parquet_blocks(source: Source, options: ReadOptions) -> Iterator[Block]:
    import pyarrow
    import pyarrow.parquet

    if source.compression:
        raise UserError(f"{source.path}: parquet is compressed inside; unpack the file first.")
    try:
        with pyarrow.parquet.ParquetFile(source.path) as table:
            names = table.schema_arrow.names
            if options.text_key not in names:
                raise UserError(
                    f"{source.path}: has no column {options.text_key!r} (it has {', '.join(names)}). Name it with --text_key."
                )
            row, bytes_per_row = 1, source.size / max(table.metadata.num_rows, 1)
            for batch in table.iter_batches(batch_size=1024, columns=[options.text_key]):
                texts = batch.column(0).to_pylist()
                yield Block(source, row, texts, int(len(texts) * bytes_per_row))
                row += len(texts)
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise OSError(str(error)) from error


def parse_block(block: Block, options: ReadOptions) -> Iterator[Document]:
    """The documents of a block, in order; a bad row is a Document without a text. Blank lines are none."""
    if isinstance(block.payload, list):
        for row, value in enumerate(block.payload, block.first_row):
            yield _checked(row, value, options.text_key)
    elif block.source.kind == "jsonl":
        for row, line in enumerate(_lines(block.payload), block.first_row):
            if line and not line.isspace():
                yield _json_row(row, line, options.text_key)
    else:
        yield from _texts(block.payload, block.first_row, options.document)


def _lines(payload: bytes) -> list[str] | list[bytes]:
    """Lines as text, decoded at once; as bytes where one of them is no UTF-8 and has to be found."""
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
            return Document(row, None, f"is a JSON {type(value).__name__}, not an object")
        return Document(row, None, f"has no key {key!r} (it has {', '.join(value) or 'none'}); name it with --text_key")
    return _checked(row, text, key)


def _checked(row: int, value: Any, key: str) -> Document:
    if isinstance(value, str):
        return Document(row, value)
    return Document(row, None, f"{key!r} holds {'nothing' if value is None else type(value).__name__}, not text")


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
    """(bytes of a document, line ends up to the next one)."""
    if mode == "line":
        yield from ((line.removesuffix(b"\r"), 1) for line in payload.split(b"\n"))
    elif mode == "blank_line":
        at = 0
        for end, following in [*((m.start(), m.end()) for m in _BLANK_LINE.finditer(payload)), (len(payload),) * 2]:
            # A run of blank lines may have been cut by the border of a block: what is left of it is no text.
            begin = _LEADING_BLANKS.match(payload, at).end()
            yield b"", payload.count(b"\n", at, begin)
            yield payload[begin:end].rstrip(b"\r\n"), payload.count(b"\n", begin, following)
            at = following
    else:
        yield payload, 0


def read_documents(sources: list[Source], options: ReadOptions) -> Iterator[tuple[Source, Document]]:
    """Every document of every file, in one process."""
    for block in read_blocks(sources, options):
        for document in parse_block(block, options):
            yield block.source, document


def bad_row(source: Source, document: Document) -> str:
    """The line that names a bad row."""
    return f"{source.path}, {'row' if source.kind == 'parquet' else 'line'} {document.row}: {document.problem}"
