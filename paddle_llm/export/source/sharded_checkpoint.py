"""Reads full tensors from a checkpoint of this library, `checkpoint-N`, of any layout.

The parts of all ranks are found through the index (checkpoint/format/). If fine-tuning trains a part of the network, the
checkpoint has only that part.

Version 0.2 and earlier wrote PaddleNLP's files: one per tensor-parallel rank and pipeline stage,
`model_state.tpXX_ppXX.pdparams`, with that rank's parts under the names that one process uses. Sharding has no effect on
the files. A unified checkpoint has full tensors in safetensors. In both cases the vocabulary may be padded for tensor
parallelism, and a head tied to the embedding may be stored a second time. These files are mapped, not read
(models/weights/paddle_pickles.py).

Memory: one full tensor.
"""

from __future__ import annotations

import dataclasses
import json
import re
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from paddle_llm.checkpoint.format.index import DTYPES
from paddle_llm.checkpoint.format.manifest import has_this_format
from paddle_llm.checkpoint.format.reader import Reader
from paddle_llm.checkpoint.format.verify import verify
from paddle_llm.config.layout import Layout
from paddle_llm.config.local_files.model_folder import read_model_facts
from paddle_llm.core.artifacts import MANIFEST, MODEL_CONFIG, SAFETENSORS
from paddle_llm.core.errors import UserError
from paddle_llm.core.json_files import read_json_object
from paddle_llm.families import Family
from paddle_llm.families.shape import find_family
from paddle_llm.models.weights.files import WeightFiles
from paddle_llm.models.weights.names import IGNORED_ENDS, canonical_name, is_tied
from paddle_llm.models.weights.paddle_pickles import scan_paddle_pickle
from paddle_llm.models.weights.shards import Shard, assemble, shard_of, split_axis
from paddle_llm.models.weights.vocabulary import plain_config, unpad
from paddle_llm.models.weights.weight_shapes import weight_shapes
from paddle_llm.peft.method import Method

_WEIGHTS = "weights"  # kind of tensors in the index
_LORA = {"lora_A": 0, "lora_B": 1, "lora_magnitude": 1}  # axis of the weight along which each tensor may be split
_PREFIX_HEADS = ("prefix_key", "prefix_value")  # [tokens, key-value heads, width]
_WEIGHT_FILES = re.compile(r"(model|config\.json)")  # beginnings of file names


class _Part(Protocol):
    """The part of a tensor in one file."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype: ...

    def view(self) -> np.ndarray: ...


class CheckpointTensors:
    """The weights of a checkpoint: full tensors by canonical name, without vocabulary padding.

    Args:
        folder: The checkpoint.

    Attributes:
        layout: Layout that it was trained on.
        family: Model family of the network.
        config: PaddleNLP's configuration of the network in one process.
        method: Method of fine-tuning, if it adds tensors or freezes a part of the network; else None.
        added: Names of the tensors that the method added.
        is_whole: Whether the checkpoint has all weights of the network.

    Raises:
        UserError: If the checkpoint is incomplete or has no weights.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        manifest = read_manifest(self.folder)
        self.layout = Layout(**manifest["layout"])
        described = (manifest.get("identity") or {}).get("method")
        self.method = None if described is None else Method.from_dict(described)
        facts = read_model_facts(self.folder)
        self.family: Family = find_family(facts)
        self._key_value_heads = facts.num_key_value_heads
        self._padded = self.family.load("config_class").from_dict(json.loads((self.folder / MODEL_CONFIG).read_text()))
        self.config = plain_config(self._padded)
        unified = self._is_unified()
        if has_this_format(self.folder):
            parts = self._parts_of_index()
        else:
            parts = self._parts_of_unified() if unified else self._parts_of_ranks()
        self._parts = self._canonical(parts)
        self._set_fusion()
        self.added = [name for name in self._parts if name not in self.network]
        if unified and self.added and self.layout.tensor > 1:
            raise UserError(
                f"{self.folder} is a unified checkpoint of {self.layout}: PaddleNLP saved only the first tensor-parallel rank's "
                f"part of {self.added[0]} and of the other adapter tensors. Use the run's adapter folder, or a checkpoint written "
                "without --unified_checkpoint."
            )
        missing = [name for name in self.network if name not in self._parts]
        if self.method is None and (missing or self.added):
            problem = f"lacks {missing[0]}" if missing else f"has {self.added[0]}, which is not a weight of the network"
            raise UserError(
                f"{self.folder} {problem}: its config.json was changed. Restore it, or choose another checkpoint."
            )
        self.is_whole = not missing

    @cached_property
    def network(self) -> dict[str, tuple[int, ...]]:
        """Canonical name -> shape of every weight of the network, in the network's order."""
        return weight_shapes(self.config, self.family)

    def names(self) -> list[str]:
        """Return the names of the network's weights in the checkpoint, in the network's order."""
        return [name for name in self.network if name in self._parts]

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a weight, or of a tensor in `added`."""
        return self.network[name] if name in self.network else self._shards(name)[0].shape

    def dtype(self, name: str) -> str:
        """Return the stored type: "float32", "bfloat16" or "float16"."""
        stored = self._parts[name][0].dtype
        return "bfloat16" if stored == np.uint16 else stored.name

    def read(self, name: str) -> np.ndarray:
        """Return the whole tensor, which must not be modified; bfloat16 as uint16 bits."""
        shards, parts = self._shards(name), self._parts[name]
        full = assemble(shards, [part.view() for part in parts]) if len(shards) > 1 else parts[0].view()
        return unpad(self.family.name, name, full, self._padded)

    # --- files ---------------------------------------------------------------------------------------------------

    def _is_unified(self) -> bool:
        return any((self.folder / name).is_file() for name in (SAFETENSORS, f"{SAFETENSORS}.index.json"))

    def _parts_of_index(self) -> dict[str, list[_Part]]:
        reader = Reader(self.folder)
        return {key.partition("/")[2]: [_IndexedPart(reader, key)] for key in reader.keys(_WEIGHTS)}

    def _parts_of_unified(self) -> dict[str, list[_Part]]:
        files = WeightFiles(self.folder)
        return {name: [_UnifiedPart(files, name)] for name in files.names()}

    def _parts_of_ranks(self) -> dict[str, list[_Part]]:
        """Return the parts by their names in the files, tensor-parallel ranks in order.

        If two pipeline stages have the same tensor, that of the first stage is used.
        """
        found: dict[str, list[_Part]] = {}
        for stage in range(self.layout.pipeline):
            ranks = [scan_paddle_pickle(self._file(rank, stage)) for rank in range(self.layout.tensor)]
            for name in ranks[0]:
                if any(name not in rank for rank in ranks):
                    raise UserError(
                        f"{self.folder} is incomplete: {name} is missing in a tensor-parallel rank's file. "
                        "Choose another checkpoint."
                    )
                found.setdefault(name, [rank[name] for rank in ranks])
        return found

    def _file(self, rank: int, stage: int) -> Path:
        parts = [f"tp{rank:02}"] if self.layout.tensor > 1 else []
        parts += [f"pp{stage:02}"] if self.layout.pipeline > 1 else []
        file = self.folder / ("model_state." + "_".join(parts) + ".pdparams").replace("..", ".")
        if not file.is_file():
            raise UserError(
                f"{self.folder} was saved on {self.layout} and has no {file.name}. If each machine has its own disk, "
                "copy the files of all machines into one folder."
            )
        return file

    def _canonical(self, parts: dict[str, list[_Part]]) -> dict[str, list[_Part]]:
        tied = is_tied(self.family.name, self.config)
        found: dict[str, list[_Part]] = {}
        for name, held in parts.items():
            if not name.endswith(IGNORED_ENDS):
                found.setdefault(canonical_name(self.family.name, name, tied=tied), held)
        return found

    def _set_fusion(self) -> None:
        """Detect --fuse_attention_qkv and --fuse_attention_ffn from names, as config.json does not record them."""
        for flag, matrix in (("fuse_attention_qkv", ".qkv_proj."), ("fuse_attention_ffn", ".gate_up_fused_proj.")):
            if hasattr(self.config, flag) and any(matrix in name for name in self._parts):
                for config in (self.config, self._padded):
                    setattr(config, flag, True)

    # --- parts ---------------------------------------------------------------------------------------------------

    def _shards(self, name: str) -> list[Shard]:
        """Return for each file its part of the full tensor (with vocabulary padding)."""
        parts = self._parts[name]
        degree, local = len(parts), list(parts[0].shape)
        layer, _, own = name.rpartition(".")
        # LoRA's tensors are split like the layer's weight: A along its inputs, B and DoRA's magnitudes along its outputs.
        like = f"{layer}.weight" if own in _LORA else name
        if own == "lora_magnitude" and like in self.network:
            outputs, (part,) = self.network[like][1], local
            if part == outputs:
                return [Shard((outputs,), 0, ((0, outputs),))]
            family, config = self.family.name, self._padded
            shards = [shard_of(family, like, [1, part], True, config, degree, rank) for rank in range(degree)]
            return [Shard((shard.shape[1],), 0, shard.ranges) for shard in shards]
        if like in self.network:
            axis, full = split_axis(self.family.name, like, len(local)), self.network[like]
            if local[axis] != full[axis] and _LORA.get(own, axis) == axis:
                family, config = self.family.name, self._padded
                return [shard_of(family, like, local, True, config, degree, rank) for rank in range(degree)]
        elif own.startswith(_PREFIX_HEADS) and local[1] != self._key_value_heads:
            shape, part = (local[0], local[1] * degree, local[2]), local[1]
            return [Shard(shape, 1, ((rank * part, (rank + 1) * part),)) for rank in range(degree)]
        return [Shard(tuple(local), 0, ((0, local[0]),))]


class _IndexedPart:
    """A full tensor, without vocabulary padding, in the files of all ranks."""

    def __init__(self, reader: Reader, key: str) -> None:
        self._reader, self._key, self._entry = reader, key, reader.index.tensors[key]

    @property
    def shape(self) -> tuple[int, ...]:
        entry, axis = self._entry, self._entry.parts[0].axis
        return (
            entry.shape if entry.unpadded is None else (*entry.shape[:axis], entry.unpadded, *entry.shape[axis + 1 :])
        )

    @property
    def dtype(self) -> np.dtype:
        return DTYPES[self._entry.dtype].numpy

    def view(self) -> np.ndarray:
        return self._reader.box(self._key, [(0, length) for length in self.shape])


class _UnifiedPart:
    """A full tensor in safetensors."""

    def __init__(self, files: WeightFiles, name: str) -> None:
        self._files, self._name = files, name

    @property
    def shape(self) -> tuple[int, ...]:
        return self._files.shape(self._name)

    @property
    def dtype(self) -> np.dtype:
        return self.view().dtype

    def view(self) -> np.ndarray:
        return self._files.view(self._name)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest of a checkpoint and check its weights.

    Files that only training reads may be missing in a checkpoint of version 0.2 or earlier.

    Raises:
        UserError: If a file of weights is missing or has another size.
    """
    if has_this_format(folder):
        return dataclasses.asdict(verify(folder, "fast"))
    if not (folder / MANIFEST).is_file():
        raise UserError(f"{folder} is not a complete checkpoint: it has no {MANIFEST}. Choose another checkpoint.")
    manifest = read_json_object(folder / MANIFEST)
    for name, size in (manifest.get("files") or {}).items():
        if not _WEIGHT_FILES.match(Path(name).name):
            continue
        file = folder / name
        actual = file.stat().st_size if file.is_file() else None
        if actual != size:
            problem = f"{name} is missing" if actual is None else f"{name} has {actual} bytes, not {size}"
            raise UserError(f"{folder} is not a complete checkpoint: {problem}. Choose another checkpoint.")
    return manifest


def open_checkpoint(folder: Path) -> CheckpointTensors:
    """Open a checkpoint of the whole network.

    Raises:
        UserError: If it is incomplete, or has only the weights that fine-tuning trained.
    """
    files = CheckpointTensors(folder)
    if not files.is_whole:
        method = files.method.name if files.method is not None else "fine-tuning"
        raise UserError(
            f"{folder} contains only the weights that {method} trained. Name the base model as well, and this folder with --adapter."
        )
    return files
