"""Lists what a rank writes to a checkpoint.

Values on a device are copied to host memory one tensor at a time, when they are written. Values in host memory are read where
they are.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Protocol, runtime_checkable

import numpy as np
import paddle

from paddle_llm.checkpoint.format.index import DTYPES
from paddle_llm.checkpoint.format.writer import LocalTensor
from paddle_llm.checkpoint.training_state.local_weights import STATE, WEIGHTS, LocalWeight
from paddle_llm.checkpoint.training_state.optimizer_state import OptimizerState
from paddle_llm.checkpoint.training_state.writers import Writers
from paddle_llm.models.weights.shards import Shard
from paddle_llm.parallel.zero.stage3 import is_sharded, owned_weight


@runtime_checkable
class TensorState(Protocol):
    """A callback that keeps values per weight, such as AdaLoRA's importance.

    Attributes:
        state_name: Prefix of the names in a checkpoint.
    """

    state_name: str

    def tensors(self) -> Iterable[tuple[str, paddle.Tensor, np.ndarray]]:
        """Yield the name of the values, their parameter, and the values, which have the shape of the parameter."""
        ...

    def restore_tensors(self, read: Callable[[str, paddle.Tensor], np.ndarray | None]) -> None:
        """Continue from saved values.

        Args:
            read: Function from a name and a parameter to the saved values; None if there are none.
        """
        ...


def owned_tensors(
    model: paddle.nn.Layer,
    weights: Iterable[LocalWeight],
    optimizer: OptimizerState,
    writers: Writers,
    *,
    trained_only: bool = False,
    callbacks: Iterable[TensorState] = (),
) -> Iterator[tuple[str, LocalTensor]]:
    """Yield the key and a description of each tensor that this rank writes.

    Args:
        model: Network without fleet's wrapper.
        weights: Weights of this rank.
        optimizer: States of the optimizer.
        writers: Assignment of tensors to ranks.
        trained_only: Whether frozen weights are omitted.
        callbacks: Callbacks with values per weight.
    """
    of_parameter = {}
    for weight in weights:
        parameter = weight.parameter
        of_parameter[id(parameter)] = weight
        if trained_only and not weight.is_trained:
            continue
        owner, shared = optimizer.owner(parameter), not is_sharded(model, parameter)
        if writers.writes(weight, owner=owner, replicated=shared, split=weight.shard.is_split):
            read = partial(_read_weight, model, parameter)
            yield f"{WEIGHTS}/{weight.name}", LocalTensor(weight.shard, dtype_of(parameter), read, weight.unpadded)
        if not optimizer.owns(parameter):
            continue
        for kind, tensor in optimizer.states(parameter).items():
            shard, unpadded = state_shard(kind, weight, tensor.shape, writers.tensor_degree, writers.tensor_rank)
            if writers.writes(weight, owner=owner, replicated=False, split=shard.is_split):
                yield f"{kind}/{weight.name}", LocalTensor(shard, dtype_of(tensor), partial(_on_host, tensor), unpadded)
    for callback in callbacks:
        for name, parameter, values in callback.tensors():
            weight, owner = of_parameter[id(parameter)], optimizer.owner(parameter)
            mine = optimizer.owns(parameter)
            if mine and writers.writes(weight, owner=owner, replicated=False, split=weight.shard.is_split):
                yield state_key(callback, name, weight), LocalTensor.of(values, weight.shard, weight.unpadded)


def state_key(callback: TensorState, name: str, weight: LocalWeight) -> str:
    """Return the key of a callback's values for a weight."""
    return f"{STATE}/{callback.state_name}/{name}/{weight.name}"


def state_shard(
    kind: str, weight: LocalWeight, shape: Iterable[int], tensor_degree: int, tensor_rank: int
) -> tuple[Shard, int | None]:
    """Return which part of a full optimizer state a rank holds, and its size without vocabulary padding.

    Args:
        kind: Kind of the state.
        weight: The weight.
        shape: Shape of the state on this rank.
        tensor_degree: Tensor-parallel degree.
        tensor_rank: Tensor-parallel rank.

    Raises:
        RuntimeError: If the shape is neither the weight's nor a single number.
    """
    shape = tuple(shape) or (1,)
    if shape == (tuple(weight.parameter.shape) or (1,)):
        return weight.shard, weight.unpadded
    if not weight.shard.is_split or (shape == (1,) and kind.endswith("_pow_acc")):
        return Shard(shape, 0, ((0, shape[0]),)), None
    if shape == (1,):  # a mean over the rank's part (AdamW-mini): one number per rank
        return Shard((tensor_degree,), 0, ((tensor_rank, tensor_rank + 1),)), None
    raise RuntimeError(f"{kind} of {weight.name} has shape {list(shape)}, its weight {list(weight.parameter.shape)}")


def dtype_of(tensor: paddle.Tensor) -> str:
    """Return the name of a tensor's type without Paddle's prefix."""
    return str(tensor.dtype).rpartition(".")[2]


def _read_weight(model: paddle.nn.Layer, parameter: paddle.Tensor) -> np.ndarray:
    if not is_sharded(model, parameter):
        return _on_host(parameter)
    with owned_weight(model, parameter):  # its memory may be freed afterwards
        return _copied(parameter)


def _on_host(tensor: paddle.Tensor) -> np.ndarray:
    """Return the values of a tensor: a view of its memory if that is in the host, which `numpy()` of Paddle would copy."""
    if not tensor.place.is_cpu_place() or not tensor.is_contiguous() or not tensor.size:
        return _copied(tensor)
    dtype = DTYPES[dtype_of(tensor)]
    memory = (ctypes.c_byte * (tensor.size * dtype.nbytes)).from_address(tensor.data_ptr())
    return np.frombuffer(memory, dtype.numpy).reshape(tuple(tensor.shape) or (1,))


def _copied(tensor: paddle.Tensor) -> np.ndarray:
    values = tensor.detach().numpy()
    return values if values.shape else values.reshape(1)
