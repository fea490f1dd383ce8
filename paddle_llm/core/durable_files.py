"""Operations on files that a power failure cannot undo: write and flush, rename and flush.

All of them pass through one point, so that a test can record their order or end the process at any of them
(`operations_passed_to`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import xxhash

# Of one write. Its digest is computed just before, so that the write finds it in the processor's cache.
BLOCK_BYTES = 1 << 20

Observer = Callable[[str, Path], None]
_observer: Observer | None = None


@dataclass(frozen=True)
class FileRecord:
    """What a file must contain.

    Attributes:
        nbytes: Size.
        xxh3_128: Digest of the content, 32 hexadecimal digits.
    """

    nbytes: int
    xxh3_128: str


@contextmanager
def operations_passed_to(observer: Observer) -> Iterator[None]:
    """Call a function before every operation. For tests.

    Args:
        observer: Function of the operation ("create", "write", "flush" or "rename") and its path.
    """
    global _observer
    before, _observer = _observer, observer
    try:
        yield
    finally:
        _observer = before


def write_durably(path: Path, pieces: Iterable[bytes | memoryview]) -> FileRecord:
    """Write a file and flush it to disk. The name in its folder is not flushed: see `flush`.

    Args:
        path: File to write; an existing one is overwritten.
        pieces: Content, in order; each piece is requested after the piece before it was written.

    Returns:
        Size and digest of the file, computed while it was written.

    Raises:
        OSError: If the file cannot be written.
    """
    digest, size = xxhash.xxh3_128(), 0
    _report("create", path)
    with open(path, "wb", buffering=0) as stream:
        for piece in pieces:
            view = memoryview(piece).cast("B")
            for start in range(0, len(view), BLOCK_BYTES):
                block = view[start : start + BLOCK_BYTES]
                digest.update(block)
                _write_all(stream.fileno(), block, path)
                _start_flush(stream.fileno(), size + start, len(block))
            size += len(view)
        _report("flush", path)
        os.fsync(stream.fileno())
    return FileRecord(size, digest.hexdigest())


def flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on disk."""
    _report("flush", path)
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def rename_durably(source: Path, target: Path) -> None:
    """Rename a file or folder and flush the new name to disk."""
    _report("rename", target)
    os.replace(source, target)
    flush(target.parent)


def _write_all(handle: int, block: memoryview, path: Path) -> None:
    while block:
        _report("write", path)
        block = block[os.write(handle, block) :]


def _start_flush(handle: int, offset: int, nbytes: int) -> None:
    """Let the kernel write bytes to disk now, while the next ones are computed, and not only when the file is flushed.

    Linux does so for pages that are to leave the page cache and are not on disk yet. They stay in the cache.
    """
    with suppress(OSError):  # a hint, which a file system may refuse
        os.posix_fadvise(handle, offset, nbytes, os.POSIX_FADV_DONTNEED)


def _report(operation: str, path: Path) -> None:
    if _observer is not None:
        _observer(operation, path)
