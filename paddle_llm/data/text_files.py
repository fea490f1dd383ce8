"""Reads text files as UTF-8: detects the encoding, decompresses .gz and .zst, and splits rows at newlines only.

Corpora, instruction rows and prompt files are all read by `TextStream`. It reads UTF-8, UTF-16 and UTF-32, with or
without a byte order mark. Any other encoding is an error, because a guess could train on wrong characters.
"""

from __future__ import annotations

import codecs
import gzip
import os
import re
import shlex
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Protocol

import zstandard

from paddle_llm.core.console import say
from paddle_llm.core.downloads import failed_download
from paddle_llm.core.errors import UserError

COMPRESSIONS = (".gz", ".zst")
_MAGIC = {b"\x1f\x8b": ".gz", b"\x28\xb5\x2f\xfd": ".zst"}
_OTHER_MAGIC = {
    b"BZh91AY&SY": "bzip2", b"\xfd7zXZ\x00": "xz", b"PK\x03\x04": "zip", b"7z\xbc\xaf": "7z", b"PAR1": "parquet", b"ARROW1": "arrow",
}  # fmt: skip
# UTF-32 first: its little-endian mark starts with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_HEAD_BYTES = 1 << 16
_MAX_UNDECODABLE = 1000  # a file with this many undecodable bytes is rejected without reading the rest
_ESCAPED = re.compile("[\udc80-\udcff]")
_TWO_BYTES = re.compile(rb"[\x81-\xfe][\x40-\xfe]")
_MIN_HIGH_BYTES = 8  # with fewer bytes above ASCII, a guess of the encoding is useless
_MULTI_BYTE = ("big5", "cp932", "cp949", "cp950", "shift_jis", "euc_", "johab", "hz", "iso2022")
_ONE_BYTE_HINT = (
    "ENCODING may be CP1252 (Western European), CP1250 (Central European), CP1251 (Cyrillic) or another one; "
    "check the result"
)
_COMMON_GBK = re.compile(rb"[\xa1-\xa3\xb0-\xd7][\xa1-\xfe]")

_reported: set[tuple[str, str]] = set()


@dataclass(frozen=True)
class TextEncoding:
    """Encoding of the characters of a file.

    Attributes:
        name: Python's name of the codec: utf-8, utf-16-le, utf-16-be, utf-32-le or utf-32-be.
        mark: Byte order mark at the start; empty if there is none.
    """

    name: str = "utf-8"
    mark: bytes = b""

    def __str__(self) -> str:
        bits, _, order = self.name.removeprefix("utf-").partition("-")
        return f"UTF-{bits}{f' {order.upper()}' if order else ''}{' with byte order mark' if self.mark else ''}"


def compression_of(path: str | os.PathLike[str]) -> str:
    """Return the compression named by the suffix of a path: ".gz", ".zst" or ""."""
    suffix = os.path.splitext(os.fspath(path).lower())[1]
    return suffix if suffix in COMPRESSIONS else ""


def detect_encoding(head: bytes) -> TextEncoding:
    """Detect the encoding of a text by its byte order mark or by the positions of its zero bytes.

    Args:
        head: First bytes of the file, decompressed.

    Returns:
        UTF-8 unless the bytes prove another Unicode encoding.
    """
    for mark, name in _MARKS:
        if head.startswith(mark):
            return TextEncoding(name, mark)
    if b"\0" not in head:
        return TextEncoding()
    for name in ("utf-32-le", "utf-32-be"):
        if len(head) >= 8 and _decodes(head, name):
            return TextEncoding(name)
    # In UTF-16, ASCII characters, blanks and line ends have a zero byte in the upper half. Valid UTF-8 text may contain
    # NUL characters, so it counts as UTF-16 only if zero bytes are frequent.
    even, odd = head[::2].count(0), head[1::2].count(0)
    least = max(2.0, 0.1 * len(head) / 2) if _decodes(head, "utf-8") else 1
    name = "utf-16-le" if odd > even else "utf-16-be"
    if (max(even, odd) >= least or 2 * max(even, odd) == len(head)) and even != odd and _decodes(head, name):
        return TextEncoding(name)
    return TextEncoding()


def _decodes(head: bytes, name: str) -> bool:
    """Return whether bytes decode, for UTF-16 and UTF-32 also without NUL; a partial last character is accepted."""
    try:
        text = codecs.getincrementaldecoder(name)("strict").decode(head, final=len(head) < _HEAD_BYTES)
    except UnicodeDecodeError:
        return False
    return name == "utf-8" or "\0" not in text


class _ByteReader(Protocol):
    """A file that is read as bytes."""

    def read(self, size: int = -1, /) -> bytes: ...


class TextStream:
    """The bytes of a text file, decompressed, as UTF-8 without byte order mark. A context manager.

    Rows with undecodable bytes are passed on, so that the caller can report their lines. A file in which most of the
    bytes above ASCII are undecodable is not UTF-8 and is rejected as a whole.

    Attributes:
        path: Path of the file.
        encoding: Detected encoding.
    """

    def __init__(self, path: str | os.PathLike[str], compression: str | None = None) -> None:
        """Open a file and detect its encoding.

        Args:
            path: Path of the file.
            compression: ".gz", ".zst" or ""; None detects it by the suffix or by the first bytes.

        Raises:
            UserError: If the file cannot be opened, or has an unsupported compression.
        """
        self.path = os.fspath(path)
        self._raw: IO[bytes] | None = None
        try:
            self._raw = open(self.path, "rb")  # noqa: SIM115  closed by close()
            self._stream = self._decompressed(compression)
            self._head = self._read_head()
        except OSError as error:
            self.close()
            raise UserError(f"{self.path}: cannot be read: {error.strerror or error}. Check the path.") from error
        except BaseException:
            self.close()
            raise
        if problem := failed_download(self._head, pages=False):
            self.close()
            raise UserError(f"{self.path}: {problem}.")
        self.encoding = detect_encoding(self._head)
        self._head = self._head[len(self.encoding.mark) :]
        utf8 = self.encoding.name == "utf-8"
        self._decoder = codecs.getincrementaldecoder(self.encoding.name)("surrogateescape" if utf8 else "strict")
        self._undecodable = self._continuations = self._lines = self._bad_line = 0
        self._sample = b""

    def __enter__(self) -> TextStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        if self._raw is not None:
            self._raw.close()

    @property
    def consumed(self) -> int:
        """Number of bytes of the file on disk that have been read."""
        return self._raw.tell() if self._raw is not None else 0

    def read(self, count: int = -1) -> bytes:
        """Read about `count` bytes of the file as UTF-8, or all of it if `count` is -1; return b"" at the end.

        Raises:
            UserError: If the file is damaged or not UTF-8.
        """
        while True:
            if count < 0:
                chunk, self._head = self._head + self._read(-1), b""
            elif self._head:
                chunk, self._head = self._head[:count], self._head[count:]
            else:
                chunk = self._read(count)
            end = not chunk or count < 0
            converted = self._convert(chunk, end)
            if converted or end:
                return converted

    def _convert(self, chunk: bytes, end: bool) -> bytes:
        if self.encoding.name != "utf-8":
            try:
                return self._decoder.decode(chunk, end).encode("utf-8")
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{self.path}: damaged {self.encoding} text: {error.reason}. Write the file again in UTF-8."
                ) from error
        self._count(chunk, end)
        return chunk

    def _count(self, chunk: bytes, end: bool) -> None:
        """Count undecodable bytes and, as evidence for UTF-8, continuation bytes of valid characters."""
        state = self._decoder.getstate()[0]
        if state or end or not chunk.isascii():
            text = self._decoder.decode(chunk, end)
            cut = len(self._decoder.getstate()[0])
            invalid = len(_ESCAPED.findall(text)) if not _is_clean(text) else 0
            self._undecodable += invalid
            self._continuations += len(state) + len(chunk) - cut - len(text)
            if invalid and not self._bad_line:
                first = _ESCAPED.search(text)
                self._bad_line = self._lines + 1 + text.count("\n", 0, first.start() if first else 0)
        self._lines += chunk.count(b"\n")
        if self._bad_line and len(self._sample) < _HEAD_BYTES:
            self._sample += chunk[:_HEAD_BYTES]
        most = self._undecodable > self._continuations
        if most and (end or self._undecodable >= _MAX_UNDECODABLE):
            raise UserError(not_utf8(self.path, self._sample, self._bad_line))

    def _read_head(self) -> bytes:
        head = self._read(_HEAD_BYTES)
        while len(head) < _HEAD_BYTES and (more := self._read(_HEAD_BYTES - len(head))):
            head += more
        return head

    def _decompressed(self, compression: str | None) -> _ByteReader:
        assert self._raw is not None
        magic = self._raw.read(16)
        self._raw.seek(0)
        if compression is None:
            compression = compression_of(self.path)
        if not compression:
            compression = next((kind for start, kind in _MAGIC.items() if magic.startswith(start)), "")
        other = next((kind for start, kind in _OTHER_MAGIC.items() if magic.startswith(start)), None)
        if not compression and other:
            remedy = "Rename it to .parquet" if other == "parquet" else "Decompress it, or compress it as .gz or .zst"
            raise UserError(f"{self.path}: contains {other} data, not text. {remedy}.")
        if compression == ".gz":
            return gzip.GzipFile(fileobj=self._raw)
        if compression == ".zst":
            decompressor = zstandard.ZstdDecompressor()
            return decompressor.stream_reader(self._raw, read_across_frames=True, closefd=False)
        return self._raw

    def _read(self, count: int) -> bytes:
        try:
            return self._stream.read(count)
        except (OSError, EOFError, zlib.error, zstandard.ZstdError) as error:
            reason = str(error) or type(error).__name__
        if isinstance(self._stream, gzip.GzipFile) and "gzipped" in reason:
            raise UserError(f"{self.path}: not compressed with gzip, although its suffix is .gz. Rename the file.")
        raise UserError(f"{self.path}: cannot be read to its end: {reason}. Copy or compress the file again.")

    def report(self) -> None:
        """Print the encoding once per file, if it is not plain UTF-8."""
        if self.encoding != TextEncoding() and (self.path, str(self.encoding)) not in _reported:
            _reported.add((self.path, str(self.encoding)))
            say(f"{self.path}: read as {self.encoding}")


def _is_clean(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def read_text(path: str | os.PathLike[str]) -> str:
    """Read a whole text file without changing line ends.

    Raises:
        UserError: If the file cannot be read or has undecodable bytes; the message gives the line.
    """
    with TextStream(path) as stream:
        stream.report()
        payload = stream.read()
    try:
        return payload.decode("utf-8")
    except UnicodeDecodeError as error:
        line = payload.count(b"\n", 0, error.start) + 1
        raise UserError(f"{os.fspath(path)}, line {line}: not UTF-8: {error.reason}. Correct the line.") from error


def read_lines(path: str | os.PathLike[str]) -> Iterator[tuple[int, str]]:
    r"""Yield (number from 1, text) of each line. Lines end only at \n and \r\n; other Unicode separators are text.

    Raises:
        UserError: If the file cannot be read or has undecodable bytes; the message gives the line.
    """
    lines = read_text(path).split("\n")
    if not lines[-1]:
        lines.pop()
    yield from ((number, line.removesuffix("\r")) for number, line in enumerate(lines, 1))


def not_utf8(path: str, sample: bytes, line: int = 0) -> str:
    """Return the message about a file that is not UTF-8, with a command that converts it.

    Args:
        path: Path of the file.
        sample: Bytes of the file.
        line: First line that is not UTF-8, from 1; 0 if unknown.
    """
    guesses = guess_encodings(sample)
    looks = f"; it looks like {' or '.join(guesses)}" if guesses else ""
    if not guesses:
        looks = f"; {_ONE_BYTE_HINT}"
    where = f"{path}, line {line}" if line else path
    convert = f"iconv -f {guesses[0] if guesses else 'ENCODING'} -t UTF-8"
    compression = compression_of(path)
    stem, suffix = os.path.splitext(path[: len(path) - len(compression)])
    source, target = shlex.quote(path), shlex.quote(f"{stem}.utf8{suffix}")
    unpack = {".gz": "gzip -dc", ".zst": "zstd -dc"}.get(compression)
    command = f"{unpack} {source} | {convert} > {target}" if unpack else f"{convert} {source} > {target}"
    return f"{where}: not UTF-8{looks}. Convert it with: {command}"


def guess_encodings(sample: bytes) -> list[str]:
    """Guess the encodings of bytes that are not UTF-8, the most likely first. For messages only."""
    pairs = _TWO_BYTES.findall(sample)
    common = sum(bool(_COMMON_GBK.fullmatch(pair)) for pair in pairs)
    guesses = ["GBK"] if pairs and common >= 0.7 * len(pairs) and 2 * len(pairs) >= _high_bytes(sample) else []
    try:
        from charset_normalizer import from_bytes
    except ImportError:
        return guesses
    best = from_bytes(sample[:4096]).best()
    name = best.encoding if best is not None else ""
    if name.startswith("gb") and not guesses:
        guesses.append("GBK")
    # One-byte encodings decode everything, so guessing one of them is useless.
    elif name.startswith(_MULTI_BYTE) and _high_bytes(sample) >= _MIN_HIGH_BYTES:
        guesses.append(name.upper().replace("_", "-"))
    return guesses


def _high_bytes(sample: bytes) -> int:
    return len(sample) - len(sample.translate(None, bytes(range(128, 256))))
