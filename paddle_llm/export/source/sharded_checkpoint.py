"""Full tensors out of a checkpoint of ours, `checkpoint-N`, whatever layout it was trained on.

PaddleNLP's Trainer (3.0.0b4) writes one file for each tensor-parallel rank and pipeline stage,
`model_state.tpXX_ppXX.pdparams`, with that rank's parts under the names of one process; sharding leaves no mark (with stage
3 the first rank of each sharding group has all of them to save). A unified checkpoint has full tensors in safetensors. Either
way the vocabulary may be padded for tensor parallelism, and a head that is tied to the embedding may stand in it a second
time. Where fine-tuning trains a part of the network, the checkpoint holds that part alone.

Memory: one full tensor. The files are mapped, not read (models/weights/paddle_pickles.py).
"""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np

from paddle_llm.config.layout import Layout
from paddle_llm.config.model_facts import read_model_facts
from paddle_llm.core.artifacts import MODEL_CONFIG, SAFETENSORS
from paddle_llm.core.errors import UserError
from paddle_llm.export.source.find import manifest_of_weights
from paddle_llm.families import Family
from paddle_llm.families.shape import find_family
from paddle_llm.models.weights.files import WeightFiles
from paddle_llm.models.weights.full_weights import assemble
from paddle_llm.models.weights.names import IGNORED_ENDS, canonical_name, is_tied
from paddle_llm.models.weights.outline import outline
from paddle_llm.models.weights.paddle_pickles import scan_paddle_pickle
from paddle_llm.models.weights.shards import Shard, shard_of, split_axis
from paddle_llm.models.weights.vocabulary import plain_config, unpad
from paddle_llm.peft.method import Method

_LORA = {"lora_A": 0, "lora_B": 1, "lora_magnitude": 1}  # the axis of the weight along which each may be cut
_HEADS_OF_PREFIX = ("prefix_key", "prefix_value")  # [tokens, key-value heads, width]


class _Part(Protocol):
    """What one file holds of a tensor."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def view(self) -> np.ndarray: ...


class LayoutFiles:
    """The weights of a checkpoint: full tensors by canonical name, without vocabulary padding.

    Attributes:
        layout: the one that it was trained on.
        family, config: the network's; PaddleNLP's configuration as one process would have it.
        method: of fine-tuning, where one adds to the network or freezes a part of it.
        added: names of the tensors that the method has added.

    Raises:
        UserError: the checkpoint is not complete, or no checkpoint with weights.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        manifest = manifest_of_weights(self.folder)
        self.layout = Layout(**manifest["layout"])
        described = (manifest.get("identity") or {}).get("method")
        self.method = None if described is None else Method.from_dict(described)
        facts = read_model_facts(self.folder)
        self.family: Family = find_family(facts)
        self._key_value_heads = facts.num_key_value_heads
        self._padded = self.family.load("config_class").from_dict(json.loads((self.folder / MODEL_CONFIG).read_text()))
        self.config = plain_config(self._padded)
        unified = self._is_unified()
        parts = self._parts_of_unified() if unified else self._parts_of_ranks()
        self._parts = self._canonical(parts)
        self._set_fusion()
        self.added = [name for name in self._parts if name not in self.network]
        if unified and self.added and self.layout.tensor > 1:
            raise UserError(
                f"{self.folder} is a unified checkpoint of {self.layout}: PaddleNLP has kept what the first tensor-parallel rank "
                f"holds of {self.added[0]} and its like, and nothing of the others. Take the run's adapter folder, or a "
                "checkpoint without --unified_checkpoint."
            )
        missing = [name for name in self.network if name not in self._parts]
        if self.method is None and (missing or self.added):
            what = f"lacks {missing[0]}" if missing else f"has {self.added[0]}, which is no weight of the network"
            raise UserError(f"{self.folder} {what}: its config.json is not the one that it was saved with")
        self.is_whole = not missing

    @cached_property
    def network(self) -> dict[str, tuple[int, ...]]:
        """Canonical name -> shape of every weight of the network, in its order."""
        return outline(self.config, self.family)

    def names(self) -> list[str]:
        """The network's weights that the checkpoint holds, in the network's order: all of them if `is_whole`."""
        return [name for name in self.network if name in self._parts]

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a weight, or of a tensor in `added`."""
        return self.network[name] if name in self.network else self._shards(name)[0].shape

    def dtype(self, name: str) -> str:
        """ "float32", "bfloat16" or "float16", as stored."""
        stored = self._parts[name][0].view().dtype
        return "bfloat16" if stored == np.uint16 else stored.name

    def read(self, name: str) -> np.ndarray:
        """The whole tensor, not to be written to; bfloat16 as its bits in uint16."""
        shards, parts = self._shards(name), self._parts[name]
        full = assemble(shards, [part.view() for part in parts]) if len(shards) > 1 else parts[0].view()
        return unpad(self.family.name, name, full, self._padded)

    # --- which file holds what -----------------------------------------------------------------------------------

    def _is_unified(self) -> bool:
        return any((self.folder / name).is_file() for name in (SAFETENSORS, f"{SAFETENSORS}.index.json"))

    def _parts_of_unified(self) -> dict[str, list[_Part]]:
        files = WeightFiles(self.folder)
        return {name: [_Unified(files, name)] for name in files.names()}

    def _parts_of_ranks(self) -> dict[str, list[_Part]]:
        """By the names in the files; tensor-parallel ranks in order. Of what two stages hold, the first one's."""
        found: dict[str, list[_Part]] = {}
        for stage in range(self.layout.pipeline):
            ranks = [scan_paddle_pickle(self._file(rank, stage)) for rank in range(self.layout.tensor)]
            for name in ranks[0]:
                if any(name not in rank for rank in ranks):
                    raise UserError(
                        f"{self.folder}: {name} is in the file of one tensor-parallel rank and not of another"
                    )
                found.setdefault(name, [rank[name] for rank in ranks])
        return found

    def _file(self, rank: int, stage: int) -> Path:
        parts = [f"tp{rank:02}"] if self.layout.tensor > 1 else []
        parts += [f"pp{stage:02}"] if self.layout.pipeline > 1 else []
        file = self.folder / ("model_state." + "_".join(parts) + ".pdparams").replace("..", ".")
        if not file.is_file():
            raise UserError(
                f"{self.folder} was saved on {self.layout} and has no {file.name}: where machines have disks of their own, "
                "each of them keeps the files of its ranks. Copy them into one folder."
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
        """config.json does not say what --fuse_attention_qkv and --fuse_attention_ffn have made one matrix of; names do."""
        for flag, matrix in (("fuse_attention_qkv", ".qkv_proj."), ("fuse_attention_ffn", ".gate_up_fused_proj.")):
            if hasattr(self.config, flag) and any(matrix in name for name in self._parts):
                for config in (self.config, self._padded):
                    setattr(config, flag, True)

    # --- how parts make a whole ----------------------------------------------------------------------------------

    def _shards(self, name: str) -> list[Shard]:
        """Which part of the full tensor (with vocabulary padding) each of its files holds."""
        parts = self._parts[name]
        degree, local = len(parts), list(parts[0].shape)
        layer, _, own = name.rpartition(".")
        # LoRA's matrices are cut like the layer's weight: A along its inputs, B and DoRA's magnitudes along its outputs.
        like = f"{layer}.weight" if own in _LORA else name
        if own == "lora_magnitude" and like in self.network:
            outputs, (part,) = self.network[like][1], local
            if part == outputs:
                return [Shard((outputs,), 0, ((0, outputs),))]
            family, config = self.family.name, self._padded
            cuts = [shard_of(family, like, [1, part], True, config, degree, rank) for rank in range(degree)]
            return [Shard((cut.shape[1],), 0, cut.ranges) for cut in cuts]
        if like in self.network:
            axis, full = split_axis(self.family.name, like, len(local)), self.network[like]
            if local[axis] != full[axis] and _LORA.get(own, axis) == axis:
                family, config = self.family.name, self._padded
                return [shard_of(family, like, local, True, config, degree, rank) for rank in range(degree)]
        elif own.startswith(_HEADS_OF_PREFIX) and local[1] != self._key_value_heads:
            shape, part = (local[0], local[1] * degree, local[2]), local[1]
            return [Shard(shape, 1, ((rank * part, (rank + 1) * part),)) for rank in range(degree)]
        return [Shard(tuple(local), 0, ((0, local[0]),))]


class _Unified:
    """A full tensor in safetensors."""

    def __init__(self, files: WeightFiles, name: str):
        self._files, self._name = files, name

    @property
    def shape(self) -> tuple[int, ...]:
        return self._files.shape(self._name)

    def view(self) -> np.ndarray:
        return self._files.view(self._name)


def open_layout(folder: Path) -> LayoutFiles:
    """The weights of a checkpoint that holds all of a network.

    Raises:
        UserError: it is not complete, or holds what fine-tuning has trained alone.
    """
    files = LayoutFiles(folder)
    if not files.is_whole:
        how = files.method.name if files.method is not None else "fine-tuning"
        raise UserError(f"{folder} holds what {how} has trained and not the whole network: give its base, too")
    return files
