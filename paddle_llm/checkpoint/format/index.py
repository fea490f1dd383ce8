"""The index of a checkpoint: which bytes of which file contain which part of a tensor.

A key is `<kind>/<canonical name>`, such as `weights/lm_head.weight` or `moment1/lm_head.weight`. Every rank writes the
parts that it owns; the parts of a tensor are disjoint and cover it. The axis and the ranges of a part are those of
`models/weights/shards.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from paddle_llm.models.weights.shards import Shard

FORMAT = "paddle_llm.checkpoint"
VERSION = 1


@dataclass(frozen=True)
class DType:
    """A type of numbers.

    Attributes:
        safetensors: Name in the header of a safetensors file.
        numpy: Type of arrays, little-endian. bfloat16 is stored as bits in uint16.
    """

    safetensors: str
    numpy: np.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of one number."""
        return int(self.numpy.itemsize)


# Name in the index -> type. numpy's uint16 is taken for bfloat16, as Paddle returns it.
DTYPES = {
    name: DType(stored, np.dtype(numpy))
    for name, stored, numpy in (
        ("float64", "F64", "<f8"),
        ("float32", "F32", "<f4"),
        ("float16", "F16", "<f2"),
        ("bfloat16", "BF16", "<u2"),
        ("int64", "I64", "<i8"),
        ("int32", "I32", "<i4"),
        ("int16", "I16", "<i2"),
        ("int8", "I8", "i1"),
        ("uint64", "U64", "<u8"),
        ("uint32", "U32", "<u4"),
        ("uint8", "U8", "u1"),
        ("bool", "BOOL", "?"),
    )
}
_NAMES = {one.numpy: name for name, one in DTYPES.items()}
_PART_KEYS = {"file", "axis", "ranges", "offset", "bytes"}
_ENTRY_KEYS = {"dtype", "shape", "parts"}


def dtype_name(values: np.ndarray) -> str:
    """Return the name of the type of an array in the index; "bfloat16" for uint16.

    Raises:
        TypeError: If the format has no such type.
    """
    name = _NAMES.get(values.dtype.newbyteorder("="))
    if name is None or not values.dtype.isnative:
        raise TypeError(f"an array of {values.dtype} cannot be stored in a checkpoint")
    return name


def whole(shape: tuple[int, ...]) -> Shard:
    """Return the shard that is the whole tensor. A tensor without axes is treated as one with a single axis of length 1."""
    return Shard(shape, 0, ((0, shape[0] if shape else 1),))


def local_shape(shard: Shard) -> tuple[int, ...]:
    """Return the shape of a shard."""
    if not shard.shape:
        return ()
    length = sum(stop - start for start, stop in shard.ranges)
    return (*shard.shape[: shard.axis], length, *shard.shape[shard.axis + 1 :])


@dataclass(frozen=True)
class Part:
    """A part of a tensor in a file.

    Attributes:
        file: Name of the file.
        axis: Axis along which the tensor is split.
        ranges: Ranges [start, stop) of the full tensor along `axis`, in the order of the file.
        offset: Position of the first byte in the file.
        nbytes: Number of bytes.
    """

    file: str
    axis: int
    ranges: tuple[tuple[int, int], ...]
    offset: int
    nbytes: int

    def to_json(self) -> dict[str, Any]:
        """Return the entry of this part in `index.json`."""
        ranges = [list(one) for one in self.ranges]
        return {"file": self.file, "axis": self.axis, "ranges": ranges, "offset": self.offset, "bytes": self.nbytes}

    @staticmethod
    def from_json(value: Any) -> Part:
        """Read the entry of a part.

        Raises:
            ValueError: If it is invalid.
        """
        if not isinstance(value, dict) or set(value) != _PART_KEYS or type(value["file"]) is not str:
            raise ValueError("has an invalid part")
        ranges = value["ranges"]
        if not isinstance(ranges, list) or any(not isinstance(one, list) or len(one) != 2 for one in ranges):
            raise ValueError("has a part with invalid ranges")
        numbers = (value["axis"], value["offset"], value["bytes"], *(number for one in ranges for number in one))
        if not _are_sizes(numbers):
            raise ValueError("has a part with an invalid number")
        pairs = tuple((start, stop) for start, stop in ranges)
        return Part(value["file"], value["axis"], pairs, value["offset"], value["bytes"])


@dataclass(frozen=True)
class TensorEntry:
    """A tensor of a checkpoint.

    Attributes:
        dtype: Name of its type, a key of `DTYPES`.
        shape: Shape of the full tensor.
        parts: Parts, disjoint; together they cover the tensor.
        unpadded: Length along the axis of the parts without the rows that were added so that the vocabulary divides by the
            tensor-parallel degree; None if none were added.
    """

    dtype: str
    shape: tuple[int, ...]
    parts: tuple[Part, ...]
    unpadded: int | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the full tensor."""
        return math.prod(self.shape) * DTYPES[self.dtype].nbytes

    def shard(self, part: Part) -> Shard:
        """Return the shard that a part is."""
        return Shard(self.shape, part.axis, part.ranges)

    def to_json(self) -> dict[str, Any]:
        """Return the entry of this tensor in `index.json`."""
        padding = {} if self.unpadded is None else {"unpadded": self.unpadded}
        parts = [part.to_json() for part in self.parts]
        return {"dtype": self.dtype, "shape": list(self.shape), **padding, "parts": parts}

    @staticmethod
    def from_json(value: Any) -> TensorEntry:
        """Read the entry of a tensor. Its parts need not cover it: see `check`.

        Raises:
            ValueError: If it is invalid.
        """
        if not isinstance(value, dict) or set(value) - {"unpadded"} != _ENTRY_KEYS:
            raise ValueError("has an invalid entry")
        dtype, shape, parts = value["dtype"], value["shape"], value["parts"]
        if type(dtype) is not str or dtype not in DTYPES:
            raise ValueError(f"has an unknown type: {dtype}")
        if not isinstance(shape, list) or not _are_sizes(shape) or not isinstance(parts, list):
            raise ValueError("has an invalid shape or list of parts")
        entry = TensorEntry(dtype, tuple(shape), tuple(map(Part.from_json, parts)), value.get("unpadded"))
        if "unpadded" in value and not _are_sizes([entry.unpadded]):
            raise ValueError(f"has an invalid unpadded length: {entry.unpadded}")
        return entry

    def check(self) -> None:
        """Check that the parts are disjoint, cover the tensor and have the right sizes.

        Raises:
            ValueError: If they do not.
        """
        if not self.parts or len({part.axis for part in self.parts}) != 1:
            raise ValueError("has no parts, or parts along different axes")
        if len({part.file for part in self.parts}) != len(self.parts):
            raise ValueError("has two parts in one file")
        axis = self.parts[0].axis
        if axis >= max(len(self.shape), 1):
            raise ValueError(f"is split along axis {axis}, but its shape is {list(self.shape)}")
        length = self.shape[axis] if self.shape else 1
        if self.unpadded is not None and not (self.shape and self.unpadded <= length):
            raise ValueError(f"has {self.unpadded} unpadded entries, but its shape is {list(self.shape)}")
        expected = 0
        for start, stop in sorted(one for part in self.parts for one in part.ranges):
            if start != expected:
                raise ValueError(f"has parts that {'overlap' if start < expected else 'do not cover it'} at {start}")
            if stop < start or (stop == start and length):
                raise ValueError(f"has an empty or reversed range: {start} to {stop}")
            expected = stop
        if expected != length:
            raise ValueError(f"has parts that end at {expected} of {length}")
        size = DTYPES[self.dtype].nbytes
        for part in self.parts:
            nbytes = math.prod(local_shape(self.shard(part))) * size
            if part.nbytes != nbytes or part.offset % size:
                raise ValueError(
                    f"has a part in {part.file} of {part.nbytes} bytes at {part.offset}, not {nbytes} bytes"
                )


@dataclass(frozen=True)
class Index:
    """All tensors of a checkpoint by key."""

    tensors: Mapping[str, TensorEntry]

    def to_json(self) -> dict[str, Any]:
        """Return the content of `index.json`."""
        tensors = {key: self.tensors[key].to_json() for key in sorted(self.tensors)}
        return {"format": FORMAT, "version": VERSION, "tensors": tensors}

    @staticmethod
    def from_json(value: Any) -> Index:
        """Read the content of `index.json` and check every tensor.

        Raises:
            ValueError: If it is invalid.
        """
        check_version(value)
        if set(value) != {"format", "version", "tensors"} or not isinstance(value["tensors"], dict):
            raise ValueError("is not an index of tensors")
        index = Index(_entries_of(value["tensors"]))
        index.check()
        return index

    def check(self) -> None:
        """Check that the parts of every tensor are disjoint and cover it.

        Raises:
            ValueError: If they do not.
        """
        for key, entry in self.tensors.items():
            try:
                entry.check()
            except ValueError as error:
                raise ValueError(f"is invalid: {key} {error}") from None

    def by_file(self) -> dict[str, dict[str, tuple[TensorEntry, Part]]]:
        """Return the parts of every file by key."""
        files: dict[str, dict[str, tuple[TensorEntry, Part]]] = {}
        for key, entry in self.tensors.items():
            for part in entry.parts:
                files.setdefault(part.file, {})[key] = (entry, part)
        return files


def merge(parts: Iterable[Mapping[str, TensorEntry]]) -> Index:
    """Combine the tensors that the ranks have written.

    Args:
        parts: Tensors of each rank by key, each with the part of this rank.

    Raises:
        ValueError: If ranks disagree about a tensor, or its parts overlap or do not cover it.
    """
    tensors: dict[str, TensorEntry] = {}
    for one in parts:
        for key, entry in one.items():
            found = tensors.get(key)
            if found is not None:
                if (found.dtype, found.shape, found.unpadded) != (entry.dtype, entry.shape, entry.unpadded):
                    raise ValueError(f"ranks disagree about {key}: {found} and {entry}")
                entry = TensorEntry(entry.dtype, entry.shape, (*found.parts, *entry.parts), entry.unpadded)
            tensors[key] = entry
    index = Index(tensors)
    index.check()
    return index


def check_version(value: Any) -> None:
    """Check that a JSON file of a checkpoint has this format and version.

    Raises:
        ValueError: If it does not.
    """
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise ValueError(f'was not written by paddle_llm: it has no "format": "{FORMAT}"')
    if type(value.get("version")) is not int or value["version"] != VERSION:
        raise ValueError(f"has format version {value.get('version')}, but this version of paddle_llm reads {VERSION}")


def _entries_of(tensors: dict[str, Any]) -> dict[str, TensorEntry]:
    entries = {}
    for key, value in tensors.items():
        try:
            entries[key] = TensorEntry.from_json(value)
        except ValueError as error:
            raise ValueError(f"is invalid: {key} {error}") from None
    return entries


def _are_sizes(numbers: Iterable[Any]) -> bool:
    return all(type(number) is int and number >= 0 for number in numbers)
