"""x A B for a linear layer, however tensor and sequence parallelism split the layer.

On each rank that holds a tensor, its gradient after the backward pass equals that of one process: where ranks hold
the same tensor but do different parts of the work, gradients are summed over them.

    kind      the layer                                        A            B            summed over the ranks
    plain     full on every rank, the same work                full         full         nothing
    column    outputs split                                    full         split        the gradient of x A
    row       inputs split                                     split        full         x A
    shared    full on every rank, each uses some outputs       full         full         the gradients of x A and B

With sequence parallelism, x (column, shared) or the output (row) is a part of the sequence: x A is gathered or
scattered along it, and the gradient of the full matrix next to it is summed over the ranks.

Shapes: R rows of x, I inputs, O outputs, K rank of the product.
"""

from __future__ import annotations

from dataclasses import dataclass

import paddle
from paddle import nn
from paddle.distributed.collective import _c_identity
from paddle.distributed.fleet.layers.mpu import mp_ops
from paddle.distributed.fleet.meta_parallel import ColumnParallelLinear, RowParallelLinear
from paddle.distributed.fleet.utils.sequence_parallel_utils import (
    AllGatherOp,
    ColumnSequenceParallelLinear,
    ReduceScatterOp,
    RowSequenceParallelLinear,
)

from paddle_llm.parallel.mesh import Axis


@dataclass(frozen=True)
class LayerSplit:
    """How a linear layer is split over tensor-parallel ranks.

    Attributes:
        kind: "plain", "column", "row" or "shared"; "embedding" for a table that is indexed.
        sequence: Whether the input (row: the output) is this rank's part of the sequence.
        axis: Mesh axis of tensor parallelism.
    """

    kind: str
    sequence: bool
    axis: Axis


def layer_split(linear: nn.Layer, axis: Axis) -> LayerSplit | None:
    """Return how a layer is split; None if it is not a linear layer that a product can be added to."""
    if isinstance(linear, ColumnSequenceParallelLinear):
        return LayerSplit("column", True, axis)
    if isinstance(linear, RowSequenceParallelLinear):
        return LayerSplit("row", True, axis)
    if isinstance(linear, ColumnParallelLinear):
        return None if linear.gather_output else LayerSplit("column", False, axis)
    if isinstance(linear, RowParallelLinear):
        return LayerSplit("row", False, axis) if linear.input_is_parallel else None
    if not isinstance(linear, nn.Linear):
        return None
    # models/patches gives this attribute to key-value projections that are not divided.
    shared = axis.size > 1 and "sequence_parallel" in linear.__dict__
    return LayerSplit("shared", linear.sequence_parallel, axis) if shared else LayerSplit("plain", False, axis)


def product(
    x_RI: paddle.Tensor,
    a_IK: paddle.Tensor,
    b_KO: paddle.Tensor,
    split: LayerSplit,
    scale: float,
    middle_K: paddle.Tensor | None = None,
) -> paddle.Tensor:
    """Return this rank's part of scale * x A diag(middle) B.

    Args:
        x_RI: Input of the layer.
        a_IK: This rank's part of A.
        b_KO: This rank's part of B.
        split: How the layer is split.
        scale: Scaling of the product.
        middle_K: Diagonal between A and B; None: ones.
    """
    if split.kind == "row":
        hidden_RK = paddle.matmul(x_RI, a_IK)
        hidden_RK = _scatter(hidden_RK) if split.sequence else _sum(hidden_RK, split.axis)
        if middle_K is not None:
            hidden_RK = hidden_RK * summed_gradient(middle_K, split.axis, split.sequence)
        return paddle.matmul(hidden_RK * scale, summed_gradient(b_KO, split.axis, split.sequence))
    hidden_RK = paddle.matmul(x_RI, summed_gradient(a_IK, split.axis, split.sequence)) * scale
    if middle_K is not None:
        hidden_RK = hidden_RK * summed_gradient(middle_K, split.axis, split.sequence)
    if split.sequence:
        hidden_RK = _gather(hidden_RK)
    elif split.kind != "plain":
        hidden_RK = summed_gradient(hidden_RK, split.axis)
    return paddle.matmul(hidden_RK, summed_gradient(b_KO, split.axis, split.kind == "shared"))


def summed_gradient(tensor: paddle.Tensor, axis: Axis, is_needed: bool = True) -> paddle.Tensor:
    """Return the tensor itself; its gradient is summed over the tensor-parallel ranks."""
    if not is_needed or axis.size == 1:
        return tensor
    return _c_identity(tensor, group=axis.group)


def _sum(tensor: paddle.Tensor, axis: Axis) -> paddle.Tensor:
    """Return the sum over the ranks; its gradient is passed on unchanged."""
    return mp_ops._mp_allreduce(tensor, group=axis.group, use_calc_stream=True, use_model_parallel=True)


def _gather(tensor: paddle.Tensor) -> paddle.Tensor:
    return AllGatherOp.apply(tensor)


def _scatter(tensor: paddle.Tensor) -> paddle.Tensor:
    return ReduceScatterOp.apply(tensor)
