"""The mmap format of Megatron and `paddlenlp.data.indexed_dataset`: PREFIX.bin with token ids and PREFIX.idx.

PREFIX.idx, little endian: magic (9 bytes), version u64 = 1, dtype code u8, number n of sequences u64, length m of
doc_idx u64; then sizes int32 [n] (tokens), pointers int64 [n] (byte offsets into .bin) and doc_idx int64 [m] (first
sequence of each document, then n).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from paddle_llm.core.errors import UserError

MAGIC = b"MMIDIDX\x00\x00"
LAZY_MAGIC = b"TNTIDX\x00\x00"
_HEADER = struct.Struct("<9sQBQQ")
HEADER_BYTES = _HEADER.size
DTYPES = {
    1: "u1",
    2: "i1",
    3: "<i2",
    4: "<i4",
    5: "<i8",
    8: "<u2",
    9: "<u4",
    10: "<u8",
}  # 6 and 7 are floats: not token ids
_CODES = {np.dtype(name): code for code, name in DTYPES.items()}
_ROWS = 1 << 20


@dataclass(frozen=True)
class Header:
    """Header of an .idx file.

    Attributes:
        dtype: Type of the token ids.
        n_sequences: Number of sequences.
        n_doc_idx: Length of the array of documents, one more than the number of documents.
    """

    dtype: np.dtype
    n_sequences: int
    n_doc_idx: int

    @property
    def index_bytes(self) -> int:
        """Required size of the whole .idx file in bytes."""
        return HEADER_BYTES + 12 * self.n_sequences + 8 * self.n_doc_idx


def token_dtype(vocab_size: int) -> np.dtype:
    """Return uint16 if every id of the vocabulary fits, else int32."""
    return np.dtype("<u2") if vocab_size < 65536 else np.dtype("<i4")


def read_header(path: Path) -> Header:
    """Read the header of an .idx file.

    Raises:
        UserError: If the file is not in this format or of another version.
    """
    with open(path, "rb") as stream:
        raw = stream.read(HEADER_BYTES)
    if len(raw) < HEADER_BYTES:
        raise UserError(
            f"{path}: corrupt: {len(raw)} bytes; the header alone has {HEADER_BYTES}. Build the corpus again."
        )
    magic, version, code, n_sequences, n_doc_idx = _HEADER.unpack(raw)
    if magic != MAGIC or version != 1 or code not in DTYPES:
        raise UserError(
            f"{path}: not an index in the mmap format: it starts with {magic!r}, version {version}, dtype code {code}. "
            "Build the corpus again."
        )
    return Header(np.dtype(DTYPES[code]), n_sequences, n_doc_idx)


def write_index(stream: BinaryIO, dtype: np.dtype, n_sequences: int, sizes: Iterable[np.ndarray]) -> None:
    """Write an .idx file whose documents have one sequence each, in bounded memory.

    Args:
        stream: File to write to.
        dtype: Type of the token ids.
        n_sequences: Number of sequences.
        sizes: Blocks of int32 with n_sequences values in total; iterated twice.
    """
    stream.write(_HEADER.pack(MAGIC, 1, _CODES[np.dtype(dtype)], n_sequences, n_sequences + 1))
    for block in sizes:
        stream.write(np.asarray(block, dtype="<i4").tobytes())
    offset = 0
    for block in sizes:
        ends = offset + np.cumsum(block, dtype=np.int64)
        stream.write(((ends - block) * np.dtype(dtype).itemsize).astype("<i8").tobytes())
        offset = int(ends[-1])
    for first in range(0, n_sequences + 1, _ROWS):
        stream.write(np.arange(first, min(first + _ROWS, n_sequences + 1), dtype="<i8").tobytes())


class SizesFile:
    """Sequence lengths in a file, so that memory use does not grow with the corpus; can be iterated repeatedly."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.count = 0

    def append(self, sizes: np.ndarray) -> None:
        """Add the lengths of more sequences."""
        self._stream.write(np.asarray(sizes, dtype="<i4").tobytes())
        self.count += len(sizes)

    def close(self) -> None:
        """Close the file."""
        self._stream.close()

    def __iter__(self) -> Iterator[np.ndarray]:
        self._stream.seek(0)
        while block := self._stream.read(4 * _ROWS):
            yield np.frombuffer(block, dtype="<i4")
