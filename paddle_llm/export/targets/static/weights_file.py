"""The weights of a program that is written without them: room in memory that nobody touches, values put into the file later.

`paddle.jit.save` wants all weights of a network in memory, and writes them to one file, sorted by name. A model that is as
large as the memory would not fit twice. Here they are names and shapes until the file is there.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import paddle

from paddle_llm.export.targets.static.weights import Weight

_FLOAT32 = 5  # of framework.proto's VarType


class Store:
    """Makes parameters of a network, and remembers what belongs into them.

    Attributes:
        weights: in the order of the file.
    """

    def __init__(self) -> None:
        self.weights: list[Weight] = []

    def parameter(self, weight: Weight) -> Any:
        """A parameter of the weight's shape, its values not set."""
        name = f"weight_{len(self.weights):08}"  # sorts like the numbers
        self.weights.append(weight)
        room = paddle.empty(weight.shape, "float32")
        parameter = paddle.base.framework.EagerParamBase.from_tensor(room, name=name)
        parameter.stop_gradient = True
        return parameter

    def constant(self, values: np.ndarray) -> Any:
        """A parameter of numbers that are known already."""
        return self.parameter(Weight(values.shape, lambda: values))


def fill_weights(file: Path, weights: list[Weight]) -> None:
    """Put values into a .pdiparams in which all tensors have their places.

    Raises:
        RuntimeError: the file is laid out otherwise: Paddle has changed its format, or left a weight out.
    """
    with open(file, "r+b") as opened:
        for weight in weights:
            if (found := _shape_of_next(opened)) != tuple(weight.shape):
                raise RuntimeError(f"{file} has a tensor of shape {found} where {tuple(weight.shape)} belongs")
            opened.write(np.ascontiguousarray(weight.read(), np.float32).data)
        if opened.read(1):
            raise RuntimeError(f"{file} has more tensors than the {len(weights)} of the network")


def _shape_of_next(opened: BinaryIO) -> tuple[int, ...]:
    """Read up to a tensor's values. Its head: version, levels of detail (none), version, length of a TensorDesc, that message."""
    head = opened.read(20)
    if len(head) < 20:
        return ()
    version, levels, tensor_version, length = struct.unpack("<IQIi", head)
    if (version, levels, tensor_version) != (0, 0, 0):
        raise RuntimeError(f"a .pdiparams of version {version}, {levels} levels, tensors of version {tensor_version}")
    return _dims(opened.read(length))


def _dims(description: bytes) -> tuple[int, ...]:
    """Of the protobuf message TensorDesc: field 1 the type, field 2 a dimension, each a varint."""
    fields = []
    number = shift = 0
    for byte in description:
        number |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            fields.append(number)
            number = shift = 0
    if fields[:2] != [8, _FLOAT32] or set(fields[2::2]) - {16}:
        raise RuntimeError(f"a tensor that is not float32, or is described in another way: {description!r}")
    return tuple(fields[3::2])
