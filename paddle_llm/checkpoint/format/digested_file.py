"""A file of a checkpoint that is read and verified at once.

Bytes that are read in the order of the file are digested from the memory into which they were read; what lies between is
read for the digest only. So a load costs one pass over the file, and the digest is computed by another thread while the
next block is read.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import xxhash

from paddle_llm.checkpoint.format.index import Part, TensorEntry
from paddle_llm.checkpoint.format.manifest import DamagedCheckpoint
from paddle_llm.core.durable_files import FileRecord

BLOCK_BYTES = 4 << 20  # a multiple of the size of every number
_SMALL_BYTES = 256 << 10  # a smaller block is digested by the thread that reads it
_CHECKED_KINDS = ("weights/", "master_weights/")  # tensors without NaN and infinity
# Type -> type of its bits, and the bits of the exponent, which are all set in NaN and infinity.
_EXPONENTS = {"bfloat16": (np.uint16, 0x7F80), "float16": (np.uint16, 0x7C00)}
_FLOATS = (*_EXPONENTS, "float32", "float64")


class Digester:
    """A thread that computes digests, and two buffers for bytes that are read for the digest only. For one reading thread."""

    def __init__(self) -> None:
        self.pool = ThreadPoolExecutor(1, thread_name_prefix="digest")
        self._buffers: list[memoryview] = []

    def buffer(self, number: int) -> memoryview:
        """Return a buffer of BLOCK_BYTES, 0 or 1."""
        while len(self._buffers) <= number:
            self._buffers.append(np.empty(BLOCK_BYTES, np.uint8).data)
        return self._buffers[number]

    def close(self) -> None:
        """End the thread."""
        self.pool.shutdown()


class DigestedFile:
    """A file for reading. It is opened when it is used, and again after it was closed.

    Args:
        folder: Folder of the checkpoint.
        name: Name of the file.
        record: Size and digest that it must have.
        parts: Tensors in the file by key; its weights must be finite.
        digester: Thread that checks digest and weights, shared by files that are read in turn; None: they are not checked.
        advance: Function of the number of bytes that were digested, for a progress bar.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        record: FileRecord,
        parts: Mapping[str, tuple[TensorEntry, Part]],
        digester: Digester | None,
        advance: Callable[[int], None] | None = None,
    ):
        self.folder, self.name, self.verifies = folder, name, digester is not None
        self._record, self._digester, self._advance = record, digester, advance
        self._handle: int | None = None
        self._digest, self._position = xxhash.xxh3_128(), 0
        self._weights = sorted(
            (part.offset, part.offset + part.nbytes, entry.dtype, key)
            for key, (entry, part) in parts.items()
            if key.startswith(_CHECKED_KINDS) and entry.dtype in _FLOATS and part.nbytes
        )

    def close(self) -> None:
        """Close the file. The digest of the bytes that were read is kept."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def read(self, offset: int, out: memoryview) -> None:
        """Read bytes into memory. The memory may be changed as soon as this function returns.

        Args:
            offset: Position of the first byte in the file.
            out: Memory to fill, of bytes.

        Raises:
            DamagedCheckpoint: If the file ends before, cannot be read, or contains weights that are not finite.
        """
        if self._digester is None or offset < self._position:  # these bytes were digested before
            self._fill(offset, out)
            return
        self._skip_to(offset)
        self._read_blocks(offset, len(out), out)

    def finish(self) -> None:
        """Read what has not been digested and compare the digest.

        Raises:
            DamagedCheckpoint: If the file has another digest, or weights that are not finite.
        """
        if self._digester is None:
            return
        self._skip_to(self._record.nbytes)
        if self._digest.hexdigest() != self._record.xxh3_128:
            raise self._damage(f"has the digest {self._digest.hexdigest()}, not {self._record.xxh3_128}")

    def _skip_to(self, offset: int) -> None:
        """Digest the bytes before a position."""
        if offset > self._position:
            self._read_blocks(self._position, offset - self._position, None)

    def _read_blocks(self, offset: int, nbytes: int, out: memoryview | None) -> None:
        """Read and digest the next bytes: into `out`, or into two buffers in turn."""
        assert self._digester is not None
        pending: list[Future[None]] = []
        end, position, number = offset + nbytes, offset, 0
        while position < end:
            # Blocks end at multiples of their size, so that none cuts a number.
            length = min(end, (position // BLOCK_BYTES + 1) * BLOCK_BYTES) - position
            if out is not None:
                block = out[position - offset : position - offset + length]
            else:
                block = self._digester.buffer(number % 2)[:length]
            self._fill(position, block)
            if length < _SMALL_BYTES and not pending:
                self._check(position, block)
            else:
                if pending:  # also: the other buffer is free again
                    pending.pop().result()
                pending.append(self._digester.pool.submit(self._check, position, block))
            position, number = position + length, number + 1
            if self._advance is not None:
                self._advance(length)
        if pending:
            pending.pop().result()
        self._position = end

    def _fill(self, offset: int, out: memoryview) -> None:
        handle = self._open()
        while out:
            try:
                count = os.preadv(handle, [out], offset)
            except OSError as error:
                raise self._damage(f"cannot be read: {error.strerror or error}") from None
            if not count:
                raise self._damage(f"is cut off: it has {offset} bytes, not {self._record.nbytes}")
            out, offset = out[count:], offset + count

    def _open(self) -> int:
        if self._handle is None:
            try:
                self._handle = os.open(self.folder / self.name, os.O_RDONLY)
            except FileNotFoundError:
                raise self._damage("is missing") from None
            except OSError as error:
                raise self._damage(f"cannot be read: {error.strerror or error}") from None
        return self._handle

    def _check(self, offset: int, block: memoryview) -> None:
        """Digest a block, and check its weights."""
        self._digest.update(block)
        end = offset + len(block)
        first = bisect_right(self._weights, offset, key=lambda one: one[1])
        for start, stop, dtype, key in self._weights[first:]:
            if start >= end:
                break
            inside = block[max(start - offset, 0) : stop - offset]
            if not _is_finite(inside, dtype):
                raise self._damage(f"contains NaN or infinity in {key}")

    def _damage(self, problem: str) -> DamagedCheckpoint:
        return DamagedCheckpoint(self.folder, self.name, problem)


def _is_finite(block: memoryview, dtype: str) -> bool:
    if dtype in _EXPONENTS:
        kind, exponent = _EXPONENTS[dtype]
        bits = np.frombuffer(block, kind)
        return bool(((bits & exponent) != exponent).all())
    return bool(np.isfinite(np.frombuffer(block, dtype)).all())
