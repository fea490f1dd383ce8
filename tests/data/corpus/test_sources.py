"""Reading documents: all formats, compressions and block sizes; bad rows and files are reported."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from paddle_llm.core.errors import UserError
from paddle_llm.data.corpus.sources import (
    Document,
    ReadOptions,
    Source,
    describe_bad_row,
    find_sources,
    parse_block,
    read_blocks,
)

DOCUMENTS = ["one", "two 明月", "three " * 50, "four"]


def texts(*inputs: object, kind: str = "auto", document: str = "line", block_bytes: int = 1 << 20) -> list[str]:
    options = ReadOptions(document=document)
    sources = find_sources([str(i) for i in inputs], kind)
    found = [d for b in read_blocks(sources, options, block_bytes) for d in parse_block(b, options)]
    assert all(d.text is not None for d in found)
    return [d.text for d in found if d.text is not None]


def read_documents(path: Path) -> Iterator[tuple[Source, Document]]:
    """Yield every document of a file with its source."""
    options = ReadOptions()
    for block in read_blocks(find_sources([str(path)]), options):
        for document in parse_block(block, options):
            yield block.source, document


def test_every_format_and_compression_gives_the_same_documents(tmp_path: Path) -> None:
    lines = "\n".join(DOCUMENTS).encode()
    rows = "".join(json.dumps({"id": 1, "text": d}) + "\n" for d in DOCUMENTS).encode()
    frames = zstandard.compress(rows[:40]) + zstandard.compress(rows[40:])  # two frames, as `zstd -T` or `cat` make
    contents = {
        "a.txt": lines, "b.txt.gz": gzip.compress(lines), "c.txt.zst": zstandard.compress(lines),
        "d.jsonl": rows, "e.json.gz": gzip.compress(rows), "f.jsonl.zst": frames,
    }  # fmt: skip
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    pyarrow.parquet.write_table(pyarrow.table({"text": DOCUMENTS, "id": [1, 2, 3, 4]}), tmp_path / "g.parquet")
    for name in [*contents, "g.parquet"]:
        for block_bytes in (1, 7, 64, 1 << 20):
            assert texts(tmp_path / name, block_bytes=block_bytes) == DOCUMENTS, (name, block_bytes)
    assert texts(tmp_path) == DOCUMENTS * 7
    assert texts(tmp_path / "*.txt*", tmp_path / "a.txt") == DOCUMENTS * 3  # a.txt once


@pytest.mark.parametrize("block_bytes", [1, 5, 1 << 20])
def test_documents_of_a_text_file_follow_the_mode(tmp_path: Path, block_bytes: int) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\nstill one\r\n\r\n \t\r\n\ntwo\n\n\nthree\n")
    by_line = texts(path, block_bytes=max(block_bytes, 3))
    assert by_line == ["one", "still one", "two", "three"]
    by_blank = texts(path, document="blank_line", block_bytes=max(block_bytes, 3))
    assert [t.replace("\r", "") for t in by_blank] == ["one\nstill one", "two", "three"]
    assert texts(path, document="file", block_bytes=max(block_bytes, 3)) == [path.read_bytes()[3:].decode()]


def test_folders_are_searched_in_order_and_other_files_skipped(tmp_path: Path) -> None:
    for name in ("b/z.txt", "a/y.txt", "x.txt", "b/picture.png", ".hidden.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    assert texts(tmp_path) == ["x.txt", "a/y.txt", "b/z.txt"]
    assert texts(tmp_path / "**" / "*.txt") == ["a/y.txt", "b/z.txt", "x.txt"]


def test_bad_rows_are_reported_with_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows = ['{"text": "ok 明"}', "", "{broken", '{"body": "x"}', '{"text": 7}', '{"text": null}', "[1]", '"text"', "5"]
    path.write_bytes("\n".join(rows).encode() + b'\n{"text": "\xff"}\n{"text": "last"}\n')
    problems = {d.row: describe_bad_row(s, d) for s, d in read_documents(path) if d.text is None}
    assert list(problems) == [3, 4, 5, 6, 7, 8, 9, 10]
    assert problems[3].startswith(f"{path}, line 3: not JSON")
    assert "no key 'text'; it has body; set it with --text_key" in problems[4]
    assert "'text' is a number, not text" in problems[5]
    assert "'text' is null, not text" in problems[6]
    assert "a list, not an object" in problems[7]
    assert "not UTF-8" in problems[10]


def test_a_bad_line_is_counted_across_blocks(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "fine"}\n' * 500 + "nonsense\n")
    options = ReadOptions()
    found = [d for b in read_blocks(find_sources([str(path)]), options, 100) for d in parse_block(b, options)]
    assert [d.row for d in found if d.text is None] == [501]
    assert [d.row for d in found] == list(range(1, 502))


def test_one_json_array_gets_a_hint(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('[\n{"text": "x"}\n]\n')
    _, first = next(read_documents(path))
    assert "write one object per line" in first.problem


def test_unreadable_files_are_an_error(tmp_path: Path) -> None:
    whole = gzip.compress(b"text\n" * 10000)
    cases = {"cut.txt.gz": whole[:-9], "no.txt.gz": b"plain", "no.txt.zst": b"plain", "no.parquet": b"plain"}
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=f"{name}: (cannot be read to its end|not compressed with gzip)"):
            texts(tmp_path / name)
    bytes_as_text = pyarrow.table({"text": pyarrow.array([b"\xff"]).view(pyarrow.string())})
    pyarrow.parquet.write_table(bytes_as_text, tmp_path / "bytes.parquet")
    with pytest.raises(UserError, match="bytes.parquet: cannot be read to its end.*invalid start byte"):
        texts(tmp_path / "bytes.parquet")
    pyarrow.parquet.write_table(pyarrow.table({"body": ["x"]}), tmp_path / "b.parquet")
    with pytest.raises(UserError, match=r"no column 'text'; it has body. Set --text_key"):
        texts(tmp_path / "b.parquet")


def test_unusable_inputs_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.log").write_text("line")
    with pytest.raises(UserError, match=r"a\.log: unknown suffix"):
        texts(tmp_path / "a.log")
    assert texts(tmp_path / "a.log", kind="text") == ["line"]
    with pytest.raises(UserError, match="no such file"):
        texts(tmp_path / "absent.txt")
    with pytest.raises(UserError, match="no file matches"):
        texts(tmp_path / "*.jsonl")
    with pytest.raises(UserError, match="no file to read"):
        texts(tmp_path)


def test_encodings_of_corpora(tmp_path: Path) -> None:
    lines = ["one", "two 明月", "three\u2028of\x85three\x0c", "four " * 100]
    for encoding in ("utf-8-sig", "utf-16", "utf-16-be", "utf-32"):
        (tmp_path / "a.txt").write_bytes("\r\n".join(lines).encode(encoding))
        (tmp_path / "b.jsonl").write_bytes("\n".join(json.dumps({"text": t}) for t in lines).encode(encoding))
        (tmp_path / "c.txt.gz").write_bytes(gzip.compress("\n".join(lines).encode(encoding)))
        for block_bytes in (7, 1 << 20):
            for name in ("a.txt", "b.jsonl", "c.txt.gz"):
                assert texts(tmp_path / name, block_bytes=block_bytes) == lines, (encoding, name)
    (tmp_path / "d.txt").write_bytes(b"an ascii line\n" * 50 + "你好\n".encode("gbk"))
    with pytest.raises(UserError, match="d.txt, line 51: not UTF-8; it looks like GBK.*iconv -f GBK"):
        list(read_documents(tmp_path / "d.txt"))
