"""Weights in the files of a checkpoint, so that a checkpoint of any layout can be read like a model folder.

`checkpoint/format` reads and verifies everything else of a checkpoint; docs/reference/checkpoint_format.md describes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from paddle_llm.core.errors import UserError
from paddle_llm.core.json_files import parse_json
from paddle_llm.models.weights.shards import Shard, assemble

_WEIGHTS = "weights/"  # beginning of the keys of weights
_NUMPY = {"float64": "<f8", "float32": "<f4", "float16": "<f2", "bfloat16": "<u2"}


@dataclass(frozen=True)
class SplitTensor:
    """A tensor whose parts are in the files of ranks.

    Attributes:
        folder: The checkpoint.
        dtype: Name of its type.
        padded: Shape of the stored tensor, with vocabulary padding.
        shape: Shape without vocabulary padding.
        parts: Entries of the parts in the index.
    """

    folder: Path
    dtype: str
    padded: tuple[int, ...]
    shape: tuple[int, ...]
    parts: tuple[dict[str, Any], ...]

    def view(self) -> np.ndarray:
        """Return the values without padding; bfloat16 as bits in uint16. A tensor with one part is mapped, not read."""
        shards, arrays = [], []
        for part in self.parts:
            ranges = tuple((start, stop) for start, stop in part["ranges"])
            shard = Shard(self.padded, part["axis"], ranges)
            local = list(self.padded)
            local[shard.axis] = sum(stop - start for start, stop in ranges)
            mapped = np.memmap(self.folder / part["file"], np.uint8, "r")
            values = mapped[part["offset"] : part["offset"] + part["bytes"]].view(_NUMPY[self.dtype])
            shards.append(shard)
            arrays.append(values.reshape(local))
        full = assemble(shards, arrays) if len(arrays) > 1 else arrays[0]
        return full[tuple(slice(0, length) for length in self.shape)]


def scan_checkpoint(index: Path) -> dict[str, SplitTensor]:
    """Return the weights of a checkpoint by canonical name.

    Args:
        index: Its `index.json`.

    Raises:
        UserError: If the index or a file is damaged.
    """
    folder = index.parent
    try:
        tensors = parse_json(index.read_text(encoding="utf-8"))["tensors"]
        found = {
            key.removeprefix(_WEIGHTS): _tensor(folder, entry)
            for key, entry in tensors.items()
            if key.startswith(_WEIGHTS)
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{index} is damaged: {error}. Use another checkpoint.") from None
    ends: dict[str, int] = {}
    for tensor in found.values():
        for part in tensor.parts:
            ends[part["file"]] = max(ends.get(part["file"], 0), part["offset"] + part["bytes"])
    for name, end in ends.items():
        file = folder / name
        if not file.is_file() or file.stat().st_size < end:
            problem = "is cut off" if file.is_file() else "is missing"
            raise UserError(f"{folder} is damaged: {name} {problem}. Use another checkpoint.")
    return found


def _tensor(folder: Path, entry: dict[str, Any]) -> SplitTensor:
    padded = tuple(entry["shape"])
    shape = list(padded)
    if "unpadded" in entry:
        shape[entry["parts"][0]["axis"]] = entry["unpadded"]
    if entry["dtype"] not in _NUMPY:
        raise ValueError(f"weights of {entry['dtype']}")
    return SplitTensor(folder, entry["dtype"], padded, tuple(shape), tuple(entry["parts"]))
