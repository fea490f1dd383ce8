"""Text files: encodings, compressions, line ends; a file that is not UTF-8 is rejected as a whole."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from paddle_llm.core.errors import UserError
from paddle_llm.data.text_files import TextStream, detect_encoding, read_lines, read_text

TEXT = '{"instruction": "你好，世界 é\u2028", "output": "好\x0c\x85"}\r\n' * 3
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be")
PACKED = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}


def streamed(path: Path, count: int) -> bytes:
    with TextStream(path) as stream:
        return b"".join(iter(lambda: stream.read(count), b""))


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_unicode_encodings_are_read_and_reported_once(encoding: str, tmp_path: Path, capsys) -> None:
    for suffix, pack in PACKED.items():
        path = tmp_path / f"a.jsonl{suffix}"
        path.write_bytes(pack(TEXT.encode(encoding)))
        assert read_text(path) == TEXT == read_text(path)
        assert {streamed(path, count) for count in (1, 7, 64, 1 << 20, -1)} == {TEXT.encode()}
        assert [number for number, _ in read_lines(path)] == [1, 2, 3]
        assert {line for _, line in read_lines(path)} == {TEXT.split("\r\n")[0]}
        reported = [line for line in capsys.readouterr().err.splitlines() if str(path) in line]
        assert len(reported) == (encoding != "utf-8")
        assert all("UTF-" in line for line in reported)


@given(
    text=st.text(st.characters(codec="utf-8", exclude_characters="\0\ufeff"), min_size=20).map(
        lambda t: f'{{"a": "{t}"}}\n'
    )
)
def test_detection_never_misreads_a_json_line(text: str) -> None:
    for encoding in ENCODINGS:
        found = detect_encoding(text.encode(encoding))
        assert text.encode(encoding)[len(found.mark) :].decode(found.name) == text, encoding


def test_zero_bytes_in_utf8_text_are_characters(tmp_path: Path) -> None:
    text = "a\0b and a long text with one NUL and 明 in it\n" * 20
    (tmp_path / "a.txt").write_text(text)
    assert read_text(tmp_path / "a.txt") == text


@pytest.mark.parametrize(
    ("text", "encoding", "guess"),
    [
        ("你好", "gbk", "GBK"),
        ("今天天气很好，我们去公园散步吧。", "gb18030", "GBK"),
        ("今天天氣很好，我們去公園散步吧", "big5", "BIG5"),
        ("こんにちは世界、元気ですか", "shift_jis", "CP932"),
        ("café", "latin-1", "iconv -f"),
    ],
)
@pytest.mark.parametrize("suffix", PACKED)
def test_other_encodings_are_an_error_with_the_command_to_convert(
    text: str, encoding: str, guess: str, suffix: str, tmp_path
) -> None:
    path = tmp_path / f"my file.jsonl{suffix}"
    rows = ['{"a": "ascii row"}'] * 10 + [f'{{"a": "{text}"}}']
    path.write_bytes(PACKED[suffix]("\n".join(rows).encode(encoding)))
    for read in (read_text, lambda p: streamed(p, 7)):
        with pytest.raises(UserError, match="my file.jsonl.*: not UTF-8") as refused:
            read(path)
        assert guess in str(refused.value) and "-t UTF-8" in str(refused.value)
        assert ("-dc" in str(refused.value)) == bool(suffix)


def test_a_large_file_is_rejected_before_its_end(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("今天天气很好\n".encode("gbk") * 10_000)
    with TextStream(path) as stream:
        with pytest.raises(UserError, match="GBK"):
            stream.read(8192)
        assert stream.consumed < 100_000


def test_single_broken_lines_of_utf8_are_reported(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("明月\nfine\n".encode() + b"caf\xe9\n" + "明月\n".encode())
    assert streamed(path, 5) == path.read_bytes()
    with pytest.raises(UserError, match="a.txt, line 3: not UTF-8"):
        read_text(path)


def test_damaged_and_other_files_are_an_error(tmp_path: Path) -> None:
    contents = {
        "cut.txt": TEXT.encode("utf-16")[:-1],
        "surrogate.txt": "ab".encode("utf-16") + b"\x3d\xd8a\0b\0",
        "cut.txt.gz": gzip.compress(TEXT.encode() * 99)[:-9],
        "plain.txt.zst": b"plain",
        "bzip.txt": b"BZh91AY&SY",
        "archive.jsonl": b"PK\x03\x04aaaaaaaaaa",
        "table.json": b"PAR1aaaaaa",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=name):
            read_text(tmp_path / name)
    (tmp_path / "packed.jsonl").write_bytes(gzip.compress(b"one\n"))
    assert read_text(tmp_path / "packed.jsonl") == "one\n"
    with pytest.raises(UserError, match="absent.txt: cannot be read: No such file"):
        read_text(tmp_path / "absent.txt")


def test_one_byte_encodings_are_not_guessed_and_the_line_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    for encoding, text in (("latin-1", "naïve"), ("cp1251", "да"), ("cp1252", "“quoted”")):
        path.write_bytes(b"first\nsecond\n" + text.encode(encoding))
        with pytest.raises(UserError, match=r"a\.txt, line 3: not UTF-8; ENCODING may be CP1252.*iconv -f ENCODING"):
            read_text(path)


def test_a_gz_suffix_on_plain_text_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.txt.gz"
    path.write_text("plain")
    with pytest.raises(UserError, match=r"not compressed with gzip, although its suffix is .gz"):
        read_text(path)


@pytest.mark.parametrize("content", [b"la\0mp", b"lamp\0", b"a b\0\nc d\n" * 2, "灯\0".encode()])
def test_a_nul_character_in_utf8_does_not_make_it_utf16(content: bytes) -> None:
    assert detect_encoding(content).name == "utf-8"
