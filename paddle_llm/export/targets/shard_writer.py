"""Safetensors shards, streamed: the header first, then one tensor after the other, a block of rows at a time.

Host memory is that of one tensor as its source hands it out (a mapped file, mostly) and a few blocks.
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

from paddle_llm.core.artifacts import SAFETENSORS, SAFETENSORS_INDEX
from paddle_llm.core.console import say
from paddle_llm.export.source.dtypes import ITEM_SIZES, converted

CODES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}  # safetensors' names
_BLOCK = 32 << 20  # bytes that are transposed, converted and written at a time
_TILE = 128  # rows and columns of a tile: two tiles fit into a core's second cache
_ALONE = 512 << 20  # bytes of a tensor beside which no other one is held
_SILENCE = 15.0  # seconds between two lines of a log
_WORKERS = min(4, len(os.sched_getaffinity(0)))


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor to be written.

    Attributes:
        name, shape, dtype: as they shall stand in the file; dtype "float32", "bfloat16" or "float16".
        stored: the type that `read` gives.
        read: the whole tensor, of `shape`; it may be a view of any strides. Called once, when it is written.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    stored: str
    read: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * ITEM_SIZES[self.dtype]


def write_shards(folder: Path, tensors: Sequence[PlannedTensor], max_shard_size: int) -> list[Path]:
    """Write `model.safetensors`, or `model-00001-of-0000N.safetensors` ... with their index, flushed to the disk.

    Args:
        max_shard_size: bytes of tensors in one file, at most; a tensor is never split, so that a larger one has a file to
            itself.

    Returns:
        the files of weights, in order.

    Raises:
        UserError: values that do not fit into the type that is asked for.
        OSError: of the disk.
    """
    shards = plan_shards(tensors, max_shard_size)
    count = len(shards)
    names = [SAFETENSORS] if count == 1 else [f"model-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)]
    with _progress(sum(tensor.nbytes for tensor in tensors)) as advance:
        for name, shard in zip(names, shards, strict=True):
            _write_shard(folder / name, shard, advance)
    if count > 1:
        where = {tensor.name: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
        total = sum(tensor.nbytes for tensor in tensors)
        index = {"metadata": {"total_size": total}, "weight_map": where}
        (folder / SAFETENSORS_INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return [folder / name for name in names]


def plan_shards(tensors: Sequence[PlannedTensor], max_shard_size: int) -> list[list[PlannedTensor]]:
    """The tensors of each file, in their order."""
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
    # Wider types first: where narrow ones come between, a wide tensor would not begin at a multiple of its size.
    tensors = sorted(tensors, key=lambda tensor: -ITEM_SIZES[tensor.dtype])
    with file.open("wb", buffering=0) as stream, ThreadPoolExecutor(_WORKERS) as workers:
        _write_all(stream, _header(tensors))
        for block in _ahead(workers, tensors):
            begin = stream.tell()
            _write_all(stream, block.reshape(-1).view(np.uint8))
            # The disk is given its work now, and not all of it at the end.
            os.posix_fadvise(stream.fileno(), begin, block.nbytes, os.POSIX_FADV_DONTNEED)
            advance(block.nbytes)
        os.fsync(stream.fileno())


def _ahead(workers: ThreadPoolExecutor, tensors: list[PlannedTensor]) -> Iterator[np.ndarray]:
    """The blocks of all tensors in order, some of them made while others are written."""
    making: deque[Future[np.ndarray]] = deque()
    for tensor in tensors:
        while making and tensor.nbytes > _ALONE:
            yield making.popleft().result()
        for part in _parts(tensor):
            # Memory of the main thread's: what a worker allocates comes as fresh pages each time.
            room = None if _row_by_row(part) else np.empty(part.shape, part.dtype)
            making.append(workers.submit(_block, part, tensor, room))
            if len(making) > _WORKERS:
                yield making.popleft().result()
        while making and tensor.nbytes > _ALONE:
            yield making.popleft().result()
    while making:
        yield making.popleft().result()


def _header(tensors: list[PlannedTensor]) -> bytes:
    table: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for tensor in tensors:
        offsets = [at, at + tensor.nbytes]
        table[tensor.name] = {"dtype": CODES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": offsets}
        at += tensor.nbytes
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _write_all(stream: BinaryIO, data: bytes | np.ndarray) -> None:
    rest = memoryview(data)
    while rest:  # one call writes 2 GB at most
        rest = rest[stream.write(rest) :]


def blocks(tensor: PlannedTensor) -> Iterator[np.ndarray]:
    """The tensor's rows in its file's type, some at a time, each block contiguous."""
    for part in _parts(tensor):
        yield _block(part, tensor)


def _parts(tensor: PlannedTensor) -> Iterator[np.ndarray]:
    """Some rows at a time, as they lie."""
    values = tensor.read()
    if values.shape != tensor.shape:
        raise ValueError(f"{tensor.name} is {values.shape}, planned as {tensor.shape}")
    rows = values.reshape(1) if values.ndim == 0 else values
    step = max(1, _BLOCK * len(rows) // max(rows.nbytes, 1))
    step += -step % _TILE
    for start in range(0, len(rows), step):
        yield rows[start : start + step]


def _block(part: np.ndarray, tensor: PlannedTensor, room: np.ndarray | None = None) -> np.ndarray:
    """Rows of a tensor, contiguous and in its file's type.

    Args:
        room: for a part that lies column by column.
    """
    return np.ascontiguousarray(converted(_contiguous(part, room), tensor.stored, tensor.dtype, tensor.name))


def _row_by_row(part: np.ndarray) -> bool:
    return part.ndim != 2 or part.flags.c_contiguous or abs(part.strides[0]) > abs(part.strides[1])


def _contiguous(part: np.ndarray, room: np.ndarray | None) -> np.ndarray:
    """A matrix that lies column by column, copied tile by tile: numpy's own copy reads memory across its rows."""
    if _row_by_row(part):
        return np.ascontiguousarray(part)
    out = np.empty(part.shape, part.dtype) if room is None else room
    for top in range(0, part.shape[0], _TILE):
        for left in range(0, part.shape[1], _TILE):
            tile = slice(top, top + _TILE), slice(left, left + _TILE)
            out[tile] = part[tile]
    return out


@contextmanager
def _progress(total: int) -> Iterator[Callable[[int], None]]:
    """A bar on stderr, where that is a terminal, and lines now and then in a log; gives what is called with the bytes that
    have been written."""
    if not sys.stderr.isatty():
        yield _lines(total)
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn("weights"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("weights", total=total)
        yield lambda written: bar.advance(task, written)


def _lines(total: int) -> Callable[[int], None]:
    """What says how far it has come, every `_SILENCE` seconds."""
    done, said = 0, time.monotonic()

    def advance(written: int) -> None:
        nonlocal done, said
        done += written
        if time.monotonic() - said >= _SILENCE:
            said = time.monotonic()
            say(f"weights: {done / 1e9:.1f} of {total / 1e9:.1f} GB ({100 * done // max(total, 1)}%)")

    return advance
