"""A checkpoint that is converted: full tensors by kind and canonical name, assembled from the parts in its files.

Keys are those of this library's format: `weights/<name>`, `master_weights/<name>`, `moment1/<name>`, ... Nothing is read
until a tensor is written; the parts are mapped into memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from paddle_llm.config.layout import Layout
from paddle_llm.core.errors import UserError
from paddle_llm.families import Family
from paddle_llm.models.weights.shards import Shard, assemble, shard_of
from paddle_llm.models.weights.vocabulary import unpad, vocabulary_axis

if TYPE_CHECKING:
    from paddlenlp.transformers import PretrainedConfig

WEIGHTS, MASTER_WEIGHTS = "weights", "master_weights"


class Part(Protocol):
    """The part of a tensor in one file."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the part."""
        ...

    @property
    def dtype(self) -> np.dtype:
        """Type of the values."""
        ...

    def view(self) -> np.ndarray:
        """Return the values, mapped if possible; bfloat16 as bits in uint16."""
        ...


@dataclass(frozen=True)
class SourceTensor:
    """A full tensor, without vocabulary padding.

    Attributes:
        shape: Shape.
        dtype: "float32", "bfloat16", ...
        read: Function that returns the values; bfloat16 as bits in uint16.
    """

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray] = field(repr=False)

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * (2 if self.dtype == "bfloat16" else np.dtype(self.dtype).itemsize)


@dataclass(frozen=True)
class Source:
    """A checkpoint that is converted.

    Attributes:
        folder: Its folder.
        title: Name of its format, for messages.
        family: Family of the network.
        config: PaddleNLP's configuration of the network in one process, without vocabulary padding.
        layout: Layout of the job that saved it, as far as the files show it.
        step: Optimizer step after which it was saved.
        tensors: Tensors by key.
        trainer_state: Content of trainer_state.json.
        scheduler: State of the learning rate schedule; None if the checkpoint has none.
        scaler: State of the loss scaler; None if the checkpoint has none.
        dropped: Files whose content is not converted -> reason.
        global_batch: Samples per optimizer step; None if the checkpoint does not show it.
        finish: Function to call after the last tensor was read and before the result is used; raises UserError if the
            checkpoint is damaged.
    """

    folder: Path
    title: str
    family: Family
    config: PretrainedConfig
    layout: Layout
    step: int
    tensors: Mapping[str, SourceTensor]
    trainer_state: Mapping[str, Any] = field(default_factory=dict)
    scheduler: Mapping[str, Any] | None = None
    scaler: Mapping[str, Any] | None = None
    dropped: Mapping[str, str] = field(default_factory=dict)
    global_batch: int | None = None
    finish: Callable[[], None] = lambda: None

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


@dataclass(frozen=True)
class Network:
    """The network whose state the files contain.

    Attributes:
        folder: Folder of the checkpoint, for messages.
        family: Family of the network.
        padded: PaddleNLP's configuration as in the files, with vocabulary padding.
        shapes: Canonical name -> shape of every weight, without padding.
    """

    folder: Path
    family: Family
    padded: PretrainedConfig
    shapes: Mapping[str, tuple[int, ...]]

    def tensor(self, kind: str, name: str, parts: Sequence[Part]) -> SourceTensor:
        """Return a full tensor.

        Args:
            kind: Kind of the tensor, such as "weights" or "moment1".
            name: Canonical name of its weight.
            parts: Its part on each tensor-parallel rank; one part: the whole tensor.

        Raises:
            UserError: If the parts do not fit the network.
        """
        if name not in self.shapes:
            raise UserError(
                f"{self.folder} contains {name}, which is not a weight of the network in its config.json. Only checkpoints of "
                "whole networks are converted."
            )
        full = self.shapes[name]
        is_number = parts[0].shape in ((), (1,)) and kind.endswith("_pow_acc")
        if is_number:
            first = parts[0]
            return SourceTensor((1,), _dtype(first), lambda: first.view().reshape(1))
        shards = self._shards(kind, name, parts)
        if shards is None:
            only = parts[0]
            return SourceTensor(full, _dtype(only), lambda: self._unpadded(name, only.view()))
        return SourceTensor(
            full, _dtype(parts[0]), lambda: self._unpadded(name, assemble(shards, [part.view() for part in parts]))
        )

    def _unpadded(self, name: str, values: np.ndarray) -> np.ndarray:
        return unpad(self.family.name, name, values, self.padded)

    def _shards(self, kind: str, name: str, parts: Sequence[Part]) -> list[Shard] | None:
        """Return the shard of each part; None if the first part is the whole tensor."""
        full, local, degree = self.shapes[name], parts[0].shape, len(parts)
        padded = self._padded_shape(name)
        if any(part.shape != local or part.dtype != parts[0].dtype for part in parts):
            raise UserError(
                f"{self.folder}: the tensor-parallel parts of {kind}/{name} differ in shape or type. {_AGAIN}"
            )
        if local in (full, padded):
            return None
        if len(local) == len(full) and degree > 1:
            family, config = self.family.name, self.padded
            shards = [shard_of(family, name, list(local), True, config, degree, rank) for rank in range(degree)]
            if shards[0].shape in (full, padded):
                return shards
        if len(local) == 1 and len(full) > 1:
            raise UserError(
                f"{self.folder}: {kind}/{name} is a slice of {local[0]} numbers of a weight {list(full)}, as sharding with split_param "
                "or stage 3 writes it. Such checkpoints are not converted. Save with --unified_checkpoint in PaddleNLP."
            )
        raise UserError(
            f"{self.folder}: {kind}/{name} has shape {list(local)} on each of {degree} tensor-parallel ranks, but the network in "
            f"config.json needs {list(full)}. {_AGAIN}"
        )

    def _padded_shape(self, name: str) -> tuple[int, ...]:
        full, axis = self.shapes[name], vocabulary_axis(self.family.name, name)
        return full if axis is None else (*full[:axis], self.padded.vocab_size, *full[axis + 1 :])


_AGAIN = "The files do not belong together: copy the checkpoint again."


def _dtype(part: Part) -> str:
    return "bfloat16" if part.dtype == np.uint16 else part.dtype.name
