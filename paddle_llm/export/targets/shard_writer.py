"""Writes safetensors shards as a stream: the header first, then each tensor in blocks of rows.

Host memory: one tensor as its source returns it (mostly a mapped file) and a few blocks.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from paddle_llm.core.artifacts import SAFETENSORS, SAFETENSORS_INDEX
from paddle_llm.core.console import say
from paddle_llm.export.source.dtypes import ITEM_SIZES, converted

CODES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}  # safetensors' names
# Packed weights are int32; they are not converted.
_ALL_CODES, _SIZES = CODES | {"int32": "I32"}, ITEM_SIZES | {"int32": 4}
_BLOCK = 32 << 20  # bytes that are transposed, converted and written at a time
_TILE = 128  # rows and columns of a tile: two tiles fit into the L2 cache of a core
_LARGE = 512 << 20  # bytes; a larger tensor is in memory alone
_LOG_INTERVAL = 15.0  # seconds between two lines of a log
_WORKERS = min(4, len(os.sched_getaffinity(0)))


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor to write.

    Attributes:
        name: Name in the file.
        shape: Shape in the file.
        dtype: Type in the file: "float32", "bfloat16", "float16" or "int32".
        stored: Type of the values that `read` returns.
        read: Function that returns the whole tensor, with `shape` and any strides. It is called once, for writing.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    stored: str
    read: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        """Size in the file."""
        return math.prod(self.shape) * _SIZES[self.dtype]


def write_shards(folder: Path, tensors: Sequence[PlannedTensor], max_shard_size: int) -> list[Path]:
    """Write `model.safetensors`, or `model-00001-of-0000N.safetensors` ... with their index, flushed to disk.

    Args:
        folder: Folder of the files.
        tensors: Tensors in order.
        max_shard_size: Maximum number of bytes of tensors in a file. A tensor is never split: a larger one gets its
            own file.

    Returns:
        The weight files in order.

    Raises:
        UserError: If a value does not fit into the requested type.
        OSError: If the disk fails.
    """
    shards = plan_shards(tensors, max_shard_size)
    count = len(shards)
    names = [SAFETENSORS] if count == 1 else [f"model-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)]
    with progress(sum(tensor.nbytes for tensor in tensors)) as advance:
        for name, shard in zip(names, shards, strict=True):
            _write_shard(folder / name, shard, advance)
    if count > 1:
        where = {tensor.name: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
        total = sum(tensor.nbytes for tensor in tensors)
        index = {"metadata": {"total_size": total}, "weight_map": where}
        (folder / SAFETENSORS_INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return [folder / name for name in names]


def plan_shards(tensors: Sequence[PlannedTensor], max_shard_size: int) -> list[list[PlannedTensor]]:
    """Return the tensors of each file, in order."""
    shards: list[list[PlannedTensor]] = [[]]
    filled = 0
    for tensor in tensors:
        if shards[-1] and filled + tensor.nbytes > max_shard_size:
            shards.append([])
            filled = 0
        shards[-1].append(tensor)
        filled += tensor.nbytes
    return shards


def _write_shard(file: Path, tensors: list[PlannedTensor], advance: Callable[[int], None]) -> None:
    # Wider types first, so that every tensor begins at a multiple of its item size.
    tensors = sorted(tensors, key=lambda tensor: -_SIZES[tensor.dtype])
    with file.open("wb", buffering=0) as stream, ThreadPoolExecutor(_WORKERS) as workers:
        _write_all(stream, _header(tensors))
        for block in _prefetched(workers, tensors):
            begin = stream.tell()
            _write_all(stream, block.reshape(-1).view(np.uint8))
            # Start writing to disk now, not all at once at the end.
            os.posix_fadvise(stream.fileno(), begin, block.nbytes, os.POSIX_FADV_DONTNEED)
            advance(block.nbytes)
        os.fsync(stream.fileno())


def _prefetched(workers: ThreadPoolExecutor, tensors: list[PlannedTensor]) -> Iterator[np.ndarray]:
    """Yield the blocks of all tensors in order; some are prepared while others are written."""
    pending: deque[Future[np.ndarray]] = deque()
    for tensor in tensors:
        while pending and tensor.nbytes > _LARGE:
            yield pending.popleft().result()
        for part in _parts(tensor):
            # The main thread allocates the buffer, because a worker would get new pages for each allocation.
            buffer = None if _is_row_major(part) else np.empty(part.shape, part.dtype)
            pending.append(workers.submit(_block, part, tensor, buffer))
            if len(pending) > _WORKERS:
                yield pending.popleft().result()
        while pending and tensor.nbytes > _LARGE:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def _header(tensors: list[PlannedTensor]) -> bytes:
    table: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in tensors:
        offsets = [offset, offset + tensor.nbytes]
        table[tensor.name] = {"dtype": _ALL_CODES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": offsets}
        offset += tensor.nbytes
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _write_all(stream: BinaryIO, data: bytes | np.ndarray) -> None:
    rest = memoryview(data)  # type: ignore[arg-type]
    while rest:  # one call writes at most 2 GB
        rest = rest[stream.write(rest) :]


def blocks(tensor: PlannedTensor) -> Iterator[np.ndarray]:
    """Yield the tensor's rows in the type of its file, as contiguous blocks."""
    for part in _parts(tensor):
        yield _block(part, tensor)


def _parts(tensor: PlannedTensor) -> Iterator[np.ndarray]:
    """Yield blocks of rows in the layout of the source."""
    values = tensor.read()
    if values.shape != tensor.shape:
        raise ValueError(f"{tensor.name} has the shape {values.shape}, but {tensor.shape} was planned")
    rows = values.reshape(1) if values.ndim == 0 else values
    step = max(1, _BLOCK * len(rows) // max(rows.nbytes, 1))
    step += -step % _TILE
    for start in range(0, len(rows), step):
        yield rows[start : start + step]


def _block(part: np.ndarray, tensor: PlannedTensor, buffer: np.ndarray | None = None) -> np.ndarray:
    """Return rows of a tensor, contiguous and in the type of its file.

    Args:
        part: The rows.
        tensor: The tensor.
        buffer: Memory for a part in column-major order; None: it is allocated.
    """
    return np.ascontiguousarray(converted(_contiguous(part, buffer), tensor.stored, tensor.dtype, tensor.name))


def _is_row_major(part: np.ndarray) -> bool:
    return part.ndim != 2 or part.flags.c_contiguous or abs(part.strides[0]) > abs(part.strides[1])


def _contiguous(part: np.ndarray, buffer: np.ndarray | None) -> np.ndarray:
    """Copy a column-major matrix tile by tile, because numpy's own copy reads memory across its rows."""
    if _is_row_major(part):
        return np.ascontiguousarray(part)
    out = np.empty(part.shape, part.dtype) if buffer is None else buffer
    for top in range(0, part.shape[0], _TILE):
        for left in range(0, part.shape[1], _TILE):
            tile = slice(top, top + _TILE), slice(left, left + _TILE)
            out[tile] = part[tile]
    return out


@contextmanager
def progress(total: int) -> Iterator[Callable[[int], None]]:
    """Show a progress bar on a terminal, otherwise lines in a log; yield the function to advance it."""
    if not sys.stderr.isatty():
        yield _log_progress(total)
        return
    columns = (TextColumn("weights"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("weights", total=total)
        yield lambda written: bar.advance(task, written)


def _log_progress(total: int) -> Callable[[int], None]:
    """Return a function that logs the progress every `_LOG_INTERVAL` seconds."""
    done, reported = 0, time.monotonic()

    def advance(written: int) -> None:
        nonlocal done, reported
        done += written
        if time.monotonic() - reported >= _LOG_INTERVAL:
            reported = time.monotonic()
            say(f"weights: {done / 1e9:.1f} of {total / 1e9:.1f} GB ({100 * done // max(total, 1)}%)")

    return advance
