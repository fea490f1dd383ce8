"""PaddleNLP's files of one rank each (Trainer 3.0.0b4): `model_state.tpXX_ppYY.pdparams`, `optimizer.tpXX_ppYY_shardZZ.pdopt`.

Without sharding-io a file of weights has all weights of a tensor-parallel rank and pipeline stage; with it
(`--save_sharded_model`) there is one file per rank of the sharding group. A file of optimizer states has those of the
weights that a rank updates, under generated names such as `linear_3.w_0_moment1_0`. The names of the weights are in the
files of weights, which paddle.save gives a table, and for sharding-io in `model_meta.json`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paddle_llm.config.layout import Layout
from paddle_llm.core.errors import UserError
from paddle_llm.core.json_files import read_json_object
from paddle_llm.models.weights.paddle_pickles import PickledTensor, read_paddle_pickle

MODEL_META = "model_meta.json"
WEIGHTS_FILE, OPTIMIZER_FILE = "model_state", "optimizer"
_NAME = re.compile(
    r"(?P<kind>model_state|optimizer|master_weights)(?:\.(?:tp(?P<tp>\d+))?_?(?:pp(?P<pp>\d+))?_?(?:shard(?P<shard>\d+))?)?"
    r"\.(?:pdparams|pdopt|safetensors)"
)
_MASTER = re.compile(r"^fp32_master_\d+_")
_NUMBER = re.compile(r"_\d+$")
_TABLE = "StructuredToParameterName@@"
_SCHEDULE = "LR_Scheduler"
_AGAIN = "Copy the files of all machines into one folder, or choose another checkpoint."


@dataclass(frozen=True, order=True)
class Position:
    """Rank of a file in each dimension of the mesh."""

    stage: int = 0
    shard: int = 0
    tensor: int = 0


def positions(folder: Path, kind: str, suffix: str) -> dict[Position, Path]:
    """Return the files of a kind by the position of their rank.

    Args:
        folder: Folder of the checkpoint.
        kind: "model_state", "optimizer" or "master_weights".
        suffix: ".pdparams", ".pdopt" or ".safetensors".
    """
    found = {}
    for file in sorted(folder.glob(f"{kind}*{suffix}")):
        match = _NAME.fullmatch(file.name)
        if match is not None and match["kind"] == kind:
            found[Position(*(int(match[axis] or 0) for axis in ("pp", "shard", "tp")))] = file
    return found


def layout_of_files(folder: Path, files: Mapping[Position, Path]) -> Layout:
    """Return the layout that file names show. Data parallel ranks have no files.

    Raises:
        UserError: If a rank's file is missing.
    """
    sizes = [1 + max(getattr(position, axis) for position in files) for axis in ("stage", "shard", "tensor")]
    if len(files) != sizes[0] * sizes[1] * sizes[2]:
        names = ", ".join(file.name for file in files.values())
        raise UserError(f"{folder} is incomplete: of {sizes[0] * sizes[1] * sizes[2]} ranks it has {names}. {_AGAIN}")
    stage, sharding, tensor = sizes
    return Layout(pipeline=stage, sharding=sharding, tensor=tensor, sharding_stage=1 if sharding > 1 else 0)


class RankFiles:
    """The tensors of all ranks by their names in the files of one process.

    Args:
        folder: Folder of the checkpoint.

    Attributes:
        layout: Layout that saved the checkpoint.
        is_sharding_io: Whether the weights are sharded, too.
        scheduler: State of the schedule in the optimizer's files; None without one.

    Raises:
        UserError: If files are missing, or contain other things than tensors.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        weights = positions(folder, WEIGHTS_FILE, ".pdparams")
        optimizer = positions(folder, OPTIMIZER_FILE, ".pdopt")
        if not optimizer:
            raise UserError(
                f"{folder} has weights but no optimizer states ({OPTIMIZER_FILE}.pdopt), so training cannot continue from it. Use "
                "it as a model: --model_name_or_path, or paddle-llm export."
            )
        layout_of_files(folder, weights)
        self.layout = layout_of_files(folder, optimizer)
        self.is_sharding_io = (folder / MODEL_META).is_file()
        self.scheduler: Mapping[str, Any] | None = None
        self._tables: dict[Position, dict[str, str]] = {}  # generated name -> name of the weight
        self._weights = {position: self._read_weights(position, file) for position, file in weights.items()}
        if self.is_sharding_io:
            self._add_tables_of_meta()
        self._optimizer = {position: self._read_optimizer(position, file) for position, file in optimizer.items()}

    def parts(self) -> Iterator[tuple[str, str, list[PickledTensor]]]:
        """Yield (kind, name of the weight, parts of the tensor-parallel ranks in order) of each tensor of each stage.

        Raises:
            UserError: If a tensor-parallel rank lacks a tensor.
        """
        for stage in range(self.layout.pipeline):
            found: dict[tuple[str, str], dict[int, PickledTensor]] = {}
            for position, tensors in (*self._weights.items(), *self._optimizer.items()):
                if position.stage != stage:
                    continue
                for key, tensor in tensors.items():
                    found.setdefault(key, {}).setdefault(position.tensor, tensor)
            for (kind, name), parts in found.items():
                if sorted(parts) != list(range(self.layout.tensor)):
                    raise UserError(
                        f"{self.folder} is incomplete: {kind}/{name} is missing on a tensor-parallel rank. {_AGAIN}"
                    )
                yield kind, name, [parts[rank] for rank in range(self.layout.tensor)]

    def _read_weights(self, position: Position, file: Path) -> dict[tuple[str, str], PickledTensor]:
        content = read_paddle_pickle(file)
        table = content.get(_TABLE)
        if not isinstance(table, dict):
            raise UserError(
                f"{file} has no table of generated names ({_TABLE}), which the optimizer states need. It was not written by "
                "PaddleNLP's Trainer; use it as a model: --model_name_or_path."
            )
        self._table(position).update({generated: name for name, generated in table.items()})
        return {("weights", name): value for name, value in content.items() if isinstance(value, PickledTensor)}

    def _add_tables_of_meta(self) -> None:
        """Add the names of weights that a file of sharding-io lacks, because they are kept as master weights."""
        file = self.folder / MODEL_META
        metas = read_json_object(file).get("sharding_metas")
        if not isinstance(metas, dict):
            raise UserError(f"{file} has no sharding_metas. Copy the checkpoint again.")
        for suffix, meta in metas.items():
            match = re.fullmatch(r"tp(\d+)_pp(\d+)", suffix)
            mapping = meta.get("structure_name_mapping") if isinstance(meta, dict) else None
            if match is None or not isinstance(mapping, dict):
                raise UserError(f"{file} has an invalid entry: {suffix}. Copy the checkpoint again.")
            self._table(Position(tensor=int(match[1]), stage=int(match[2]))).update(
                {generated: name for name, generated in mapping.items()}
            )

    def _table(self, position: Position) -> dict[str, str]:
        """Return the table of generated names, which all ranks of a sharding group share."""
        return self._tables.setdefault(Position(stage=position.stage, tensor=position.tensor), {})

    def _read_optimizer(self, position: Position, file: Path) -> dict[tuple[str, str], PickledTensor]:
        table, found = self._table(position), {}
        for key, value in read_paddle_pickle(file).items():
            if key == _SCHEDULE and isinstance(value, dict):
                self.scheduler = value
            elif key == "master_weights" and isinstance(value, dict):
                for generated, tensor in value.items():
                    found["master_weights", self._name(file, table, generated)] = tensor
            elif isinstance(value, PickledTensor):
                generated, kind = split_state_name(key, table)
                found[kind, self._name(file, table, generated)] = value
            elif key != _TABLE:
                raise UserError(f"{file} contains {key}, a {type(value).__name__}, which is not known. Save it again.")
        return found

    def _name(self, file: Path, table: Mapping[str, str], generated: str) -> str:
        if generated not in table:
            raise UserError(
                f"{file} has states of {generated}, but no file of weights names this weight. The files do not belong together: "
                "copy the checkpoint again."
            )
        return table[generated]


def split_state_name(key: str, table: Mapping[str, str]) -> tuple[str, str]:
    """Split `linear_3.w_0_fp32_master_0_moment1_0` into the generated name of the weight and the kind, `moment1`.

    Args:
        key: Name of an optimizer state.
        table: Generated names of all weights.

    Returns:
        The longest generated name with which the key begins (the key itself if there is none), and the kind.
    """
    end = len(key)
    while (end := key.rfind("_", 0, end)) > 0:
        if key[:end] in table:
            return key[:end], _NUMBER.sub("", _MASTER.sub("", key[end + 1 :]))
    return key, ""
