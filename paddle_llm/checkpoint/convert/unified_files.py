"""PaddleNLP's unified checkpoint (Trainer 3.0.0b4): safetensors with an index for weights, optimizer and master weights.

    model.safetensors.index.json           weights: full tensors by name
    optimizer.safetensors.index.json       `<name>/moment1_0`, ...; whether there are master weights
    master_weights.safetensors.index.json  fp32 weights

With `skip_save_model_weight` the files of the weights are the master weights. With `ignore_merge_optimizer` the optimizer's
files are those of single ranks, `optimizer.tpXX_ppYY_shardZZ.safetensors`, and the index names none.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from paddle_llm.checkpoint.convert.rank_files import Position, layout_of_files, positions
from paddle_llm.config.layout import Layout
from paddle_llm.core.artifacts import SAFETENSORS_INDEX
from paddle_llm.core.errors import UserError
from paddle_llm.core.json_files import read_json_object
from paddle_llm.models.weights.files import WeightFiles

OPTIMIZER_INDEX = "optimizer.safetensors.index.json"
MASTER_INDEX = "master_weights.safetensors.index.json"
_NUMBER = re.compile(r"_\d+$")


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a safetensors file."""

    files: WeightFiles
    name: str

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape in the file."""
        return self.files.shape(self.name)

    @property
    def dtype(self) -> np.dtype:
        """Type of the values; bfloat16 is stored as bits in uint16."""
        return self.view().dtype

    def view(self) -> np.ndarray:
        """Return the values, mapped into memory."""
        return self.files.view(self.name)


class UnifiedFiles:
    """The tensors of a unified checkpoint.

    Args:
        folder: Folder of the checkpoint.

    Attributes:
        layout: Layout, if the optimizer's files show it.
        weights_are_master_weights: Whether the weights were not saved, because the master weights contain them.

    Raises:
        UserError: If files are missing, or states are quantized.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        index = read_json_object(folder / OPTIMIZER_INDEX)
        quantized = index.get("ckpt_quant_stage", "O0")
        if quantized != "O0":
            raise UserError(
                f"{folder} has quantized optimizer states (ckpt_quant_stage {quantized}), which cannot be restored exactly. Save "
                "with --ckpt_quant_stage O0 in PaddleNLP."
            )
        self.layout = Layout()
        self._weights = self._indexed(folder / SAFETENSORS_INDEX)
        self._ranks: dict[Position, dict[str, StoredTensor]] = {}
        if "weight_map" in index:
            self._optimizer = self._indexed(folder / OPTIMIZER_INDEX)
            has_master = (folder / MASTER_INDEX).is_file()
            self.weights_are_master_weights = bool(index.get("master_weights")) and not has_master
            self._master = self._indexed(folder / MASTER_INDEX) if has_master else {}
        else:
            self._optimizer, self._master, self.weights_are_master_weights = {}, {}, False
            self._open_ranks()

    def parts(self) -> Iterator[tuple[str, str, list[StoredTensor]]]:
        """Yield (kind, name of the weight, parts) of each tensor; one part is the whole tensor."""
        kind = "master_weights" if self.weights_are_master_weights else "weights"
        yield from ((kind, name, [tensor]) for name, tensor in self._weights.items())
        yield from (("master_weights", name, [tensor]) for name, tensor in self._master.items())
        for key, tensor in self._optimizer.items():
            kind, name = split_key(self.folder, key)
            yield kind, name, [tensor]
        for stage in range(self.layout.pipeline):
            found: dict[tuple[str, str], dict[int, StoredTensor]] = {}
            for position, tensors in self._ranks.items():
                if position.stage == stage:
                    for key, tensor in tensors.items():
                        found.setdefault(split_key(self.folder, key), {})[position.tensor] = tensor
            for (kind, name), parts in found.items():
                yield kind, name, [parts[rank] for rank in sorted(parts)]

    def _open_ranks(self) -> None:
        files = positions(self.folder, "optimizer", ".safetensors")
        if not files:
            raise UserError(
                f"{self.folder} is incomplete: it has no optimizer*.safetensors. Copy the checkpoint again."
            )
        self.layout = layout_of_files(self.folder, files)
        for position, file in files.items():
            self._ranks[position] = _tensors(file)
        for position, file in positions(self.folder, "master_weights", ".safetensors").items():
            self._ranks[position] |= {f"{name}/master_weights": tensor for name, tensor in _tensors(file).items()}

    def _indexed(self, file: Path) -> dict[str, StoredTensor]:
        """Return the tensors that an index names.

        Raises:
            UserError: If a file or a tensor is missing.
        """
        if not file.is_file():
            raise UserError(f"{self.folder} is incomplete: {file.name} is missing. Copy the checkpoint again.")
        table: Any = read_json_object(file).get("weight_map")
        if not isinstance(table, dict) or not all(
            isinstance(name, str) and Path(name).name == name for name in table.values()
        ):
            raise UserError(f"{file} has no valid weight_map. Copy the checkpoint again.")
        opened = {name: _tensors(self.folder / name) for name in sorted(set(table.values()))}
        missing = next((key for key, name in table.items() if key not in opened[name]), None)
        if missing is not None:
            raise UserError(f"{self.folder / table[missing]} has no {missing}, which {file.name} names. Copy it again.")
        return {key: opened[name][key] for key, name in table.items()}


def split_key(folder: Path, key: str) -> tuple[str, str]:
    """Split `<name>/moment1_0` into the kind, `moment1`, and the name of the weight.

    Raises:
        UserError: If the key has another form.
    """
    name, slash, state = key.rpartition("/")
    if not slash:
        raise UserError(f"{folder}: {key} is not an optimizer state (<name>/<state>). Copy the checkpoint again.")
    return _NUMBER.sub("", state), name


def _tensors(file: Path) -> dict[str, StoredTensor]:
    files = WeightFiles(file.parent, file=file.name)
    return {name: StoredTensor(files, name) for name in files.names()}
