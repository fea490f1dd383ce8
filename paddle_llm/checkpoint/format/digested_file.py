"""A file of a checkpoint that is read and verified at once.

Bytes that are read in the order of the file are digested from the memory into which they were read; what lies between is
read for the digest only. So a load costs one pass over the file. Each block is checked while the processor's cache holds
it, and the kernel reads the next ones meanwhile. A second thread would not help: on a busy machine, waiting for it at every
block costs more than the digest.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
import xxhash

from paddle_llm.checkpoint.format.index import Part, TensorEntry
from paddle_llm.checkpoint.format.manifest import DamagedCheckpoint
from paddle_llm.core.durable_files import FileRecord

BLOCK_BYTES = 4 << 20  # most bytes that are read at once without being part of the result
_DIGEST_BYTES = 1 << 20  # of one read; a multiple of the size of every number
_AHEAD_BYTES = 16 << 20  # that the kernel is asked to read before they are needed
_CHECKED_KINDS = ("weights/", "master_weights/")  # tensors without NaN and infinity
# Type -> type of its bits, and the bits of the exponent, which are all set in NaN and infinity.
_EXPONENTS = {"bfloat16": (np.uint16, 0x7F80), "float16": (np.uint16, 0x7C00)}
_FLOATS = (*_EXPONENTS, "float32", "float64")


class DigestedFile:
    """A file for reading. It is opened when it is used, and again after it was closed.

    Args:
        folder: Folder of the checkpoint.
        name: Name of the file.
        record: Size and digest that it must have.
        parts: Tensors in the file by key; its weights must be finite.
        verifies: Whether digest and weights are checked.
        advance: Function of the number of bytes that were digested, for a progress bar.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        record: FileRecord,
        parts: Mapping[str, tuple[TensorEntry, Part]],
        verifies: bool,
        advance: Callable[[int], None] | None = None,
    ):
        self.folder, self.name, self.verifies = folder, name, verifies
        self._record, self._advance = record, advance
        self._handle: int | None = None
        self._digest, self._position, self._requested = xxhash.xxh3_128(), 0, 0
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
        if not self.verifies or offset < self._position:  # these bytes were digested before
            self._fill(offset, out)
            return
        self._skip_to(offset)
        self._read_blocks(offset, len(out), out)

    def finish(self) -> None:
        """Read what has not been digested and compare the digest.

        Raises:
            DamagedCheckpoint: If the file has another digest, or weights that are not finite.
        """
        if not self.verifies:
            return
        self._skip_to(self._record.nbytes)
        if self._digest.hexdigest() != self._record.xxh3_128:
            raise self._damage(f"has the digest {self._digest.hexdigest()}, not {self._record.xxh3_128}")

    def _skip_to(self, offset: int) -> None:
        """Digest the bytes before a position."""
        if offset > self._position:
            self._read_blocks(self._position, offset - self._position, None)

    def _read_blocks(self, offset: int, nbytes: int, out: memoryview | None) -> None:
        """Read and check the next bytes: into `out`, or into a buffer."""
        buffer = np.empty(min(nbytes, _DIGEST_BYTES) if out is None else 0, np.uint8).data
        end, position = offset + nbytes, offset
        while position < end:
            # Blocks end at multiples of their size, so that none cuts a number.
            length = min(end, (position // _DIGEST_BYTES + 1) * _DIGEST_BYTES) - position
            begin = position - offset
            block = buffer[:length] if out is None else out[begin : begin + length]
            self._request(position + length)
            self._fill(position, block)
            self._check(position, block)
            position += length
            if self._advance is not None:
                self._advance(length)
        self._position = end

    def _request(self, position: int) -> None:
        """Ask the kernel to read the bytes after a position, which it does meanwhile."""
        start, end = max(self._requested, position), min(position + _AHEAD_BYTES, self._record.nbytes)
        if end - start >= _AHEAD_BYTES // 2 or (start < end == self._record.nbytes):
            with suppress(OSError):  # a hint, which a file system may refuse
                os.posix_fadvise(self._open(), start, end - start, os.POSIX_FADV_WILLNEED)
            self._requested = end

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
