"""Write the file of a rank and the index of a checkpoint.

The files are byte for byte those of the safetensors library. It is not used here because it writes a file at once, from
tensors that are all in memory, and leaves neither a digest nor a flushed file.

A save has these steps. `gather` is a collective of the job, which moves JSON:

    staged.mkdir()                                               # rank 0, empty
    own = write_rank_file(staged, rank, tensors)                 # every rank
    ranks = [RankFile.from_json(one) for one in gather(own.to_json())]
    records = {"state.json": write_json(staged, "state.json", state)}   # rank 0, and so on
    finish(staged, ranks, manifest, records)
    publish(staged, output_dir / "checkpoint-10")                # core.atomic_output
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from paddle_llm.checkpoint.format.index import DTYPES, Part, TensorEntry, dtype_name, local_shape, merge, whole
from paddle_llm.checkpoint.format.manifest import Manifest, seal, write_json
from paddle_llm.core.artifacts import CHECKPOINT_INDEX
from paddle_llm.core.durable_files import FileRecord, write_durably
from paddle_llm.models.weights.shards import Shard

_ALIGNMENT = 8  # of the first tensor in a file


@dataclass(frozen=True)
class LocalTensor:
    """A part of a tensor to write.

    Attributes:
        shard: Part of the full tensor that `read` returns.
        dtype: Name of its type, a key of `DTYPES`.
        read: Function that returns the values, called once, when they are written: a tensor of a GPU is copied to host memory
            only then.
        unpadded: Length along `shard.axis` without padding; None if no rows were added.
    """

    shard: Shard
    dtype: str
    read: Callable[[], np.ndarray]
    unpadded: int | None = None

    @staticmethod
    def of(values: np.ndarray, shard: Shard | None = None, unpadded: int | None = None) -> LocalTensor:
        """Describe an array.

        Args:
            values: Values of the part; uint16 holds the bits of bfloat16.
            shard: Part of the full tensor; None: the whole tensor.
            unpadded: Length along `shard.axis` without padding.
        """
        return LocalTensor(
            whole(values.shape) if shard is None else shard, dtype_name(values), lambda: values, unpadded
        )


@dataclass(frozen=True)
class RankFile:
    """A file that a rank has written.

    Attributes:
        name: Name of the file.
        record: Size and digest.
        tensors: Tensors by key, each with the part in this file.
    """

    name: str
    record: FileRecord
    tensors: Mapping[str, TensorEntry] = field(repr=False)

    def to_json(self) -> dict[str, Any]:
        """Return JSON from which another rank makes this object again."""
        tensors = {key: entry.to_json() for key, entry in self.tensors.items()}
        return {"name": self.name, "bytes": self.record.nbytes, "xxh3_128": self.record.xxh3_128, "tensors": tensors}

    @staticmethod
    def from_json(value: dict[str, Any]) -> RankFile:
        """Return the object that another rank has sent."""
        tensors = {key: TensorEntry.from_json(entry) for key, entry in value["tensors"].items()}
        return RankFile(value["name"], FileRecord(value["bytes"], value["xxh3_128"]), tensors)


def rank_file_name(rank: int) -> str:
    """Return the name of the file of a rank."""
    return f"rank-{rank:05}.safetensors"


def write_rank_file(folder: Path, rank: int, tensors: Mapping[str, LocalTensor]) -> RankFile:
    """Write the parts that a rank owns, and flush the file.

    Memory: one tensor that is not contiguous, besides what the `read` functions return.

    Args:
        folder: Staged folder, which exists.
        rank: Rank in the job.
        tensors: Parts by key: `<kind>/<canonical name>`.

    Returns:
        What the index and the manifest record about the file.

    Raises:
        ValueError: If `read` returns another shape or type than its part has.
        OSError: If the file cannot be written.
    """
    name = rank_file_name(rank)
    record, places = write_tensor_file(folder / name, tensors)
    entries = {}
    for key, (offset, size) in places.items():
        one = tensors[key]
        part = Part(name, one.shard.axis, one.shard.ranges, offset, size)
        entries[key] = TensorEntry(one.dtype, one.shard.shape, (part,), one.unpadded)
    return RankFile(name, record, entries)


def write_tensor_file(
    file: Path, tensors: Mapping[str, LocalTensor], *, format: str = "np"
) -> tuple[FileRecord, dict[str, tuple[int, int]]]:
    """Write a safetensors file of any name, one tensor at a time, and flush it. Memory and errors as in `write_rank_file`.

    Args:
        file: File to write.
        tensors: Tensors by name.
        format: Format in the metadata; libraries of torch require "pt".

    Returns:
        Size and digest of the file, and (position, size) of each tensor in bytes.
    """
    keys = sorted(tensors, key=lambda key: (-DTYPES[tensors[key].dtype].nbytes, key))  # the order of the library
    header, sizes = _header(tensors, keys, format)
    record = write_durably(file, _pieces(header, tensors, keys))
    places, offset = {}, len(header)
    for key in keys:
        places[key] = offset, sizes[key]
        offset += sizes[key]
    return record, places


def finish(
    folder: Path, ranks: Sequence[RankFile], manifest: Manifest, records: Mapping[str, FileRecord] | None = None
) -> Manifest:
    """Write the index and the manifest of a checkpoint whose other files exist. Called by one rank.

    Args:
        folder: Staged folder. All its files become part of the checkpoint.
        ranks: Files of all ranks.
        manifest: Manifest without files.
        records: Records of further files that were written with `write_json` or `write_durably`.

    Returns:
        The manifest with all files.

    Raises:
        ValueError: If the parts of a tensor overlap or do not cover it, or ranks disagree about it.
        OSError: If a file cannot be written.
    """
    index = merge(one.tensors for one in ranks)
    written = {one.name: one.record for one in ranks} | dict(records or {})
    written[CHECKPOINT_INDEX] = write_json(folder, CHECKPOINT_INDEX, index.to_json())
    return seal(folder, manifest, written)


def _header(tensors: Mapping[str, LocalTensor], keys: list[str], format: str) -> tuple[bytes, dict[str, int]]:
    """Return the length and the header of a safetensors file as bytes, and the sizes of its tensors."""
    content: dict[str, Any] = {"__metadata__": {"format": format}}
    sizes, offset = {}, 0
    for key in keys:
        one = tensors[key]
        dtype, shape = DTYPES[one.dtype], local_shape(one.shard)
        sizes[key] = math.prod(shape) * dtype.nbytes
        offsets = [offset, offset + sizes[key]]
        content[key] = {"dtype": dtype.safetensors, "shape": list(shape), "data_offsets": offsets}
        offset += sizes[key]
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text, sizes


def _pieces(header: bytes, tensors: Mapping[str, LocalTensor], keys: list[str]) -> Iterator[bytes | memoryview]:
    yield header
    for key in keys:
        one = tensors[key]
        values, shape = one.read(), local_shape(one.shard)
        if dtype_name(values) != one.dtype or values.shape != shape:
            raise ValueError(f"{key} is {dtype_name(values)} {values.shape}, not {one.dtype} {shape}")
        if values.size:
            yield np.ascontiguousarray(values).reshape(-1).view(np.uint8).data
