"""Set the training state of this rank from a checkpoint of any layout. Each rank reads only its own parts."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import paddle

from paddle_llm.checkpoint.format.reader import Reader
from paddle_llm.checkpoint.training_state.collect import TensorState, dtype_of, state_key, state_shard
from paddle_llm.checkpoint.training_state.local_weights import MASTER_WEIGHTS, STATE, WEIGHTS, LocalWeight
from paddle_llm.checkpoint.training_state.optimizer_state import OptimizerState
from paddle_llm.core.errors import UserError
from paddle_llm.models.weights.shards import Shard
from paddle_llm.parallel.mesh import Axis
from paddle_llm.parallel.zero.stage3 import is_sharded, owned_weight


class Restore:
    """Sets weights, optimizer states and states of callbacks of this rank.

    Args:
        reader: Reader of the checkpoint.
        model: Network without fleet's wrapper.
        weights: Weights of this rank.
        optimizer: States of the optimizer.
        tensor: Tensor-parallel axis.
        trained_only: Whether the checkpoint contains trained weights only.
    """

    def __init__(
        self,
        reader: Reader,
        model: paddle.nn.Layer,
        weights: Iterable[LocalWeight],
        optimizer: OptimizerState,
        tensor: Axis,
        *,
        trained_only: bool = False,
    ) -> None:
        self._reader, self._entries = reader, reader.index.tensors
        self._model, self._optimizer, self._tensor = model, optimizer, tensor
        self._weights = [weight for weight in weights if weight.is_trained or not trained_only]
        self._kinds: dict[str, list[str]] = {}
        for key in self._entries:
            kind, _, name = key.partition("/")
            if kind not in (WEIGHTS, STATE):
                self._kinds.setdefault(name, []).append(kind)

    def problem(self) -> str | None:
        """Return why the checkpoint does not fit this rank, or None. Nothing is changed."""
        for weight in self._weights:
            key = f"{WEIGHTS}/{weight.name}"
            if key not in self._entries:
                return f"it lacks {key}"
            for other in (key, *(f"{kind}/{weight.name}" for kind in self._kinds.get(weight.name, ()))):
                wrong = self._problem_of_shape(other, weight)
                if wrong is not None:
                    return wrong
        return None

    def _problem_of_shape(self, key: str, weight: LocalWeight) -> str | None:
        entry, shard, unpadded = self._entries[key], weight.shard, weight.unpadded
        if _real_shape(entry.shape, shard.axis, entry.unpadded) == _real_shape(shard.shape, shard.axis, unpadded):
            return None
        if key.startswith(f"{WEIGHTS}/") or len(entry.shape) > 1:
            needed = list(_real_shape(shard.shape, shard.axis, unpadded))
            return f"{key} has shape {list(entry.shape)}, but this network needs {needed}"
        if entry.shape in ((1,), (self._tensor.size,)):  # one number, or one per tensor-parallel rank
            return None
        return f"{key} has {entry.shape[0]} values, one per tensor-parallel rank; this job has {self._tensor.size}"

    @paddle.no_grad()
    def set_weights(self) -> None:
        """Set all weights that this rank holds."""
        for weight in self._weights:
            parameter = weight.parameter
            if is_sharded(self._model, parameter) and not self._optimizer.owns(parameter):
                continue
            key = f"{WEIGHTS}/{weight.name}"
            master = f"{MASTER_WEIGHTS}/{weight.name}"
            if dtype_of(parameter) == "float32" and self._entries[key].dtype != "float32" and master in self._entries:
                key = master  # a training in 16 bits continues in 32
            values = self.read(key, weight.shard, weight.unpadded)
            with owned_weight(self._model, parameter):
                _assign(parameter, values)

    @paddle.no_grad()
    def set_optimizer(self) -> None:
        """Create the optimizer states of the weights that this rank owns, and set them."""
        updated = [
            weight
            for weight in self._weights
            if weight.is_trained and weight.name in self._kinds and self._optimizer.owns(weight.parameter)
        ]
        for weight in updated:
            with owned_weight(self._model, weight.parameter):  # a master weight is a copy of the weight
                self._optimizer.create([weight.parameter])
            states = self._optimizer.states(weight.parameter)
            for kind, tensor in states.items():
                key = f"{kind}/{weight.name}"
                if kind == MASTER_WEIGHTS and key not in self._entries:  # a training in 32 bits continues in 16
                    key = f"{WEIGHTS}/{weight.name}"
                shard, unpadded = state_shard(kind, weight, tensor.shape, self._tensor.size, self._tensor.rank)
                _assign(tensor, self.read(key, shard, unpadded))

    def restore_callback(self, callback: TensorState) -> None:
        """Let a callback continue from its values per weight."""
        of_parameter = {id(weight.parameter): weight for weight in self._weights}

        def read(name: str, parameter: paddle.Tensor) -> np.ndarray | None:
            weight = of_parameter[id(parameter)]
            key = state_key(callback, name, weight)
            return self.read(key, weight.shard, weight.unpadded) if key in self._entries else None

        callback.restore_tensors(read)

    def read(self, key: str, shard: Shard, unpadded: int | None) -> np.ndarray:
        """Return a part of a tensor; rows of vocabulary padding that the checkpoint lacks are zero.

        Args:
            key: Key of the tensor.
            shard: Part of the full tensor of this layout.
            unpadded: Size along `shard.axis` without vocabulary padding; None without padding.

        Raises:
            UserError: If a file is on the disk of another machine.
        """
        try:
            return self._reader.shard(key, shard, unpadded=unpadded)
        except KeyError as error:
            raise UserError(
                f"{self._reader.folder} has no {error.args[0]}: each machine wrote to its own disk. Resume on the layout that "
                "wrote the checkpoint, or use an --output_dir that all machines share."
            ) from None


def _real_shape(shape: tuple[int, ...], axis: int, unpadded: int | None) -> tuple[int, ...]:
    """Return a shape without vocabulary padding."""
    return shape if unpadded is None else (*shape[:axis], unpadded, *shape[axis + 1 :])


def _assign(tensor: paddle.Tensor, values: np.ndarray) -> None:
    """Set a tensor in place; bfloat16 values are bits in uint16. Another type is converted."""
    found = paddle.to_tensor(values, place=tensor.place if tensor._is_initialized() else None)
    if found.dtype != tensor.dtype:
        found = found.astype(tensor.dtype)
    tensor.set_value(found.reshape(tensor.shape))
