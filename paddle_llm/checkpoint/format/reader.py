"""Read tensors of a checkpoint, or any box of them, from the files of all ranks.

Only the bytes of the box are read. The exception is a box whose rows are separated by less than a page: then the gaps
are read too. Memory above the result: two blocks of `BLOCK_BYTES`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np

from paddle_llm.checkpoint.format.digested_file import BLOCK_BYTES, DigestedFile
from paddle_llm.checkpoint.format.index import DTYPES, Part, TensorEntry, local_shape, whole
from paddle_llm.checkpoint.format.manifest import read_index, read_manifest
from paddle_llm.models.weights.shards import Shard

_PAGE_BYTES = 4096
_OPEN_FILES = 64
Box = Sequence[tuple[int, int]]


class Reader:
    """Tensors of a checkpoint by key.

    With `digests`, every file from which something is read is verified as well, in the same pass: call `finish` after the
    last tensor, and use no value before it has returned. This is fastest in the order of `in_file_order`. Without,
    verify the folder before (`verify.verify`). Not for several threads.

    Attributes:
        folder: Folder of the checkpoint.
        manifest: Manifest.
        index: Index.

    Args:
        folder: Folder of the checkpoint.
        digests: Whether digests and the finiteness of weights are checked.

    Raises:
        DamagedCheckpoint: If the manifest or the index is damaged.
    """

    def __init__(self, folder: str | Path, *, digests: bool = False):
        self.folder = Path(folder)
        self.manifest = read_manifest(self.folder)
        self.index = read_index(self.folder, self.manifest)
        self._digests = digests
        self._by_file = self.index.by_file()
        self._files: dict[str, DigestedFile] = {}
        self._open: dict[str, DigestedFile] = {}  # the files that were used last, in this order

    def __enter__(self) -> Reader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all files."""
        for file in self._open.values():
            file.close()
        self._open.clear()

    def keys(self, kind: str | None = None) -> list[str]:
        """Return the keys of all tensors, or of one kind such as "weights"."""
        return [key for key in self.index.tensors if kind is None or key.startswith(f"{kind}/")]

    def in_file_order(self, keys: Iterable[str]) -> list[str]:
        """Return keys in the order in which their first parts are in the files."""
        first = {key: self.index.tensors[key].parts[0] for key in keys}
        return sorted(first, key=lambda key: (first[key].file, first[key].offset))

    def tensor(self, key: str, out: np.ndarray | None = None) -> np.ndarray:
        """Return a whole tensor.

        Args:
            key: Key of the tensor.
            out: Array to fill, of the shape and type of the tensor; None: a new one.

        Raises:
            KeyError: If the checkpoint has no such tensor.
            ValueError: If `out` has another shape or type.
            DamagedCheckpoint: If a file is damaged.
        """
        return self.shard(key, whole(self.index.tensors[key].shape), out)

    def shard(
        self, key: str, shard: Shard, out: np.ndarray | None = None, *, unpadded: int | None = None
    ) -> np.ndarray:
        """Return a part of a tensor, on whatever layout it was saved.

        If the full tensor has another length along `shard.axis` than the saved one, because the vocabulary was padded for
        another tensor-parallel degree, the rows of padding are zeros.

        Args:
            key: Key of the tensor.
            shard: Part of the full tensor.
            out: Array to fill, of the shape of the part and the type of the tensor; None: a new one.
            unpadded: Length along `shard.axis` without padding; None: the full tensor is not padded.

        Returns:
            Values of the part; bfloat16 as bits in uint16.

        Raises:
            KeyError: If the checkpoint has no such tensor.
            ValueError: If the full tensor has another shape than the saved one, or `out` another shape or type.
            DamagedCheckpoint: If a file is damaged.
        """
        entry = self.index.tensors[key]
        stored = _stored_length(key, entry, shard, unpadded)
        out = _result(entry, local_shape(shard), out)
        target = out if out.ndim else out.reshape(1)
        offset = 0
        for start, stop in shard.ranges:
            row = [slice(None)] * target.ndim
            row[shard.axis] = slice(offset, offset + max(min(stop, stored) - start, 0))
            box = [(0, length) for length in entry.shape] or [(0, 1)]
            box[shard.axis] = (start, max(min(stop, stored), start))
            self._read_box(entry, box, target[tuple(row)])
            row[shard.axis] = slice(row[shard.axis].stop, offset + stop - start)
            target[tuple(row)] = 0
            offset += stop - start
        return out

    def box(self, key: str, box: Box, out: np.ndarray | None = None) -> np.ndarray:
        """Return a box of a tensor.

        Args:
            key: Key of the tensor.
            box: Range [start, stop) of every axis.
            out: Array to fill; None: a new one.

        Raises:
            KeyError: If the checkpoint has no such tensor.
            ValueError: If the box is not inside the tensor, or `out` has another shape or type.
            DamagedCheckpoint: If a file is damaged.
        """
        entry = self.index.tensors[key]
        inside = all(0 <= start <= stop <= length for (start, stop), length in zip(box, entry.shape, strict=False))
        if len(box) != len(entry.shape) or not inside:
            raise ValueError(f"{key} has the shape {list(entry.shape)}, which does not contain {list(box)}")
        out = _result(entry, tuple(stop - start for start, stop in box), out)
        self._read_box(entry, box or [(0, 1)], out if out.ndim else out.reshape(1))
        return out

    def finish(self, names: Iterable[str] = ()) -> None:
        """Verify the rest of the files from which something was read.

        Args:
            names: Names of further files to verify. With several ranks, each takes some of the files.

        Raises:
            DamagedCheckpoint: If a file has another digest, or weights that are not finite.
        """
        for name in dict.fromkeys([*self._files, *names]):
            self._file(name).finish()

    def _read_box(self, entry: TensorEntry, box: Box, out: np.ndarray) -> None:
        for part in entry.parts:
            shape = local_shape(entry.shard(part)) or (1,)
            for source, target in _overlaps(part, box):
                self._copy(part.file, part.offset, shape, source, out[target])

    def _copy(self, name: str, offset: int, shape: tuple[int, ...], box: Box, out: np.ndarray) -> None:
        """Read a box of an array in a file.

        Args:
            name: Name of the file.
            offset: Position of the array in the file.
            shape: Shape of the array, which is stored row by row.
            box: Range of every axis.
            out: Array to fill.
        """
        if not out.size:
            return
        (start, stop), inner = box[0], box[1:]
        row = int(np.prod(shape[1:], dtype=np.int64)) * out.itemsize
        if all(one == (0, length) for one, length in zip(inner, shape[1:], strict=True)):
            self._read_rows(name, offset + start * row, out)
            return
        file = self._file(name)
        gaps = row - out[0].nbytes
        if row <= BLOCK_BYTES and (gaps <= _PAGE_BYTES or file.verifies):
            wanted = (slice(None), *(slice(*one) for one in inner))
            for begin, rows in _blocks(len(out), row):
                block = np.empty((rows, *shape[1:]), out.dtype)
                file.read(offset + (start + begin) * row, _bytes_of(block))
                out[begin : begin + rows] = block[wanted]
            return
        for position in range(start, stop):
            self._copy(name, offset + position * row, shape[1:], inner, out[position - start])

    def _read_rows(self, name: str, offset: int, out: np.ndarray) -> None:
        """Read consecutive bytes of a file into an array of any strides."""
        if out.flags.c_contiguous:
            self._file(name).read(offset, _bytes_of(out))
            return
        row = out.nbytes // len(out)
        if row > BLOCK_BYTES and out.ndim > 1:
            for position in range(len(out)):
                self._read_rows(name, offset + position * row, out[position])
            return
        for begin, rows in _blocks(len(out), row):
            block = np.empty((rows, *out.shape[1:]), out.dtype)
            self._file(name).read(offset + begin * row, _bytes_of(block))
            out[begin : begin + rows] = block

    def _file(self, name: str) -> DigestedFile:
        file = self._files.get(name)
        if file is None:
            parts = self._by_file.get(name, {})
            file = DigestedFile(self.folder, name, self.manifest.files[name], parts, self._digests)
            self._files[name] = file
        self._open.pop(name, None)
        if len(self._open) >= _OPEN_FILES:
            self._open.pop(next(iter(self._open))).close()
        self._open[name] = file
        return file


def _stored_length(key: str, entry: TensorEntry, shard: Shard, unpadded: int | None) -> int:
    """Return how many entries along the axis of a shard are read; the others are padding.

    Raises:
        ValueError: If the full tensor has another shape than the saved one.
    """
    if shard.shape == entry.shape:
        return entry.shape[shard.axis] if entry.shape else 1
    saved, wanted = list(entry.shape), list(shard.shape)
    if len(saved) == len(wanted) and entry.parts[0].axis == shard.axis:
        saved[shard.axis] = entry.shape[shard.axis] if entry.unpadded is None else entry.unpadded
        wanted[shard.axis] = shard.shape[shard.axis] if unpadded is None else unpadded
        if saved == wanted:
            return saved[shard.axis]
    raise ValueError(f"{key} has the shape {list(shard.shape)}, but {list(entry.shape)} in the checkpoint")


def _result(entry: TensorEntry, shape: tuple[int, ...], out: np.ndarray | None) -> np.ndarray:
    dtype = DTYPES[entry.dtype].numpy
    if out is None:
        return np.empty(shape, dtype)
    if out.shape != shape or out.dtype != dtype:
        raise ValueError(f"the array to fill is {out.dtype} {out.shape}, not {dtype} {shape}")
    return out


def _overlaps(part: Part, box: Box) -> Iterator[tuple[Box, tuple[slice, ...]]]:
    """Yield where a part and a box overlap: the box in the part, and the slices of the result."""
    axis, offset = part.axis, 0
    low, high = box[axis]
    for start, stop in part.ranges:
        begin, end = max(start, low), min(stop, high)
        if begin < end:
            source = list(box)
            source[axis] = (offset + begin - start, offset + end - start)
            target = [slice(None)] * len(box)
            target[axis] = slice(begin - low, end - low)
            yield source, tuple(target)
        offset += stop - start


def _blocks(rows: int, row_bytes: int) -> Iterator[tuple[int, int]]:
    """Yield first row and number of rows of blocks of at most BLOCK_BYTES, or one row."""
    step = max(BLOCK_BYTES // row_bytes, 1)
    for begin in range(0, rows, step):
        yield begin, min(step, rows - begin)


def _bytes_of(values: np.ndarray) -> memoryview:
    return values.reshape(-1).view(np.uint8).data
