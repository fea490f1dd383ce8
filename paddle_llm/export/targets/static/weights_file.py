"""Writes the values of a program's weights into the file after the program is saved with uninitialized weights.

`paddle.jit.save` needs all weights of a network in memory, beside those of the source, and writes them to one file,
sorted by name. Here a weight is only a name and a shape until the file exists.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np
import paddle

from paddle_llm.export.targets.static.weights import Weight

_FLOAT32 = 5  # VarType in framework.proto


class Store:
    """Creates the parameters of a network and records their weights.

    Attributes:
        weights: Weights in the order of the file.
    """

    def __init__(self) -> None:
        self.weights: list[Weight] = []

    def parameter(self, weight: Weight) -> paddle.Tensor:
        """Return a parameter of the weight's shape whose values are not set."""
        name = f"weight_{len(self.weights):08}"  # sorts like numbers
        self.weights.append(weight)
        memory = paddle.empty(weight.shape, "float32")
        parameter = paddle.base.framework.EagerParamBase.from_tensor(memory, name=name)
        parameter.stop_gradient = True
        return parameter

    def constant(self, values: np.ndarray) -> paddle.Tensor:
        """Return a parameter for given values."""
        return self.parameter(Weight(values.shape, lambda: values))


def fill_weights(file: Path, weights: list[Weight]) -> None:
    """Write the values into a .pdiparams that has all tensors.

    Args:
        file: The .pdiparams.
        weights: Weights in the order of the file.

    Raises:
        RuntimeError: If Paddle changed the format or omitted a weight.
    """
    with open(file, "r+b") as opened:
        for weight in weights:
            if (found := _shape_of_next(opened)) != tuple(weight.shape):
                raise RuntimeError(f"{file} has a tensor of shape {found} in place of {tuple(weight.shape)}")
            opened.write(np.ascontiguousarray(weight.read(), np.float32).data)
        if opened.read(1):
            raise RuntimeError(f"{file} has more tensors than the {len(weights)} of the network")


def _shape_of_next(opened: BinaryIO) -> tuple[int, ...]:
    """Read the header of a tensor: version, number of LoD levels (0), version, length of a TensorDesc, TensorDesc."""
    head = opened.read(20)
    if len(head) < 20:
        return ()
    version, levels, tensor_version, length = struct.unpack("<IQIi", head)
    if (version, levels, tensor_version) != (0, 0, 0):
        raise RuntimeError(
            f"unknown format of .pdiparams: version {version}, {levels} levels, tensors of version {tensor_version}"
        )
    return _dims(opened.read(length))


def _dims(description: bytes) -> tuple[int, ...]:
    """Return the shape in a protobuf message TensorDesc: field 1 is the type, each field 2 a dimension, all varints."""
    fields = []
    number = shift = 0
    for byte in description:
        number |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            fields.append(number)
            number = shift = 0
    if fields[:2] != [8, _FLOAT32] or set(fields[2::2]) - {16}:
        raise RuntimeError(f"unknown description of a float32 tensor: {description!r}")
    return tuple(fields[3::2])
