"""x A B beside a linear layer, whichever way tensor and sequence parallelism have cut it.

Every gradient comes out of the backward pass as that of one process, on each rank that holds the tensor: what several ranks
hold is summed over them where their parts of the work differ.

    kind      the layer                                        A            B            summed over the ranks
    plain     whole on every rank, the same work               whole        whole        nothing
    column    outputs cut                                      whole        cut          the gradient of x A
    row       inputs cut                                       cut          whole        x A
    shared    whole on every rank, each uses some outputs      whole        whole        the gradients of x A and B
With sequence parallelism x (column, shared) or the output (row) is a part of the sequence: x A is gathered or scattered
along it, and the gradient of the whole matrix next to it is summed over the ranks.

Shapes: R rows of x, I inputs, O outputs, K the rank of the product.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import paddle

from paddle_llm.parallel.mesh import Axis


@dataclass(frozen=True)
class Cut:
    """How a linear layer is cut.

    Attributes:
        kind: "plain", "column", "row" or "shared"; "embedding" for a table that is indexed.
        sequence: whether what comes in (row: goes out) is this rank's part of the sequence.
        axis: of tensor parallelism.
    """

    kind: str
    sequence: bool
    axis: Axis


def cut_of(linear: Any, axis: Axis) -> Cut | None:
    """How a layer is cut; None where it is not a linear layer that a product can stand beside."""
    from paddle import nn
    from paddle.distributed.fleet.meta_parallel import ColumnParallelLinear, RowParallelLinear
    from paddle.distributed.fleet.utils.sequence_parallel_utils import (
        ColumnSequenceParallelLinear,
        RowSequenceParallelLinear,
    )

    if isinstance(linear, ColumnSequenceParallelLinear):
        return Cut("column", True, axis)
    if isinstance(linear, RowSequenceParallelLinear):
        return Cut("row", True, axis)
    if isinstance(linear, ColumnParallelLinear):
        return None if linear.gather_output else Cut("column", False, axis)
    if isinstance(linear, RowParallelLinear):
        return Cut("row", False, axis) if linear.input_is_parallel else None
    if not isinstance(linear, nn.Linear):
        return None
    # `corrections.py` gives key-value projections that are not divided this attribute.
    shared = axis.size > 1 and "sequence_parallel" in linear.__dict__
    return Cut("shared", linear.sequence_parallel, axis) if shared else Cut("plain", False, axis)


def product(x_RI: Any, a_IK: Any, b_KO: Any, cut: Cut, scale: float, middle_K: Any = None) -> paddle.Tensor:
    """scale * x A diag(middle) B, as this rank's part of the layer's output.

    Args:
        a_IK, b_KO: this rank's parts.
        middle_K: None for ones.
    """
    if cut.kind == "row":
        hidden_RK = paddle.matmul(x_RI, a_IK)
        hidden_RK = _scatter(hidden_RK) if cut.sequence else _sum(hidden_RK, cut.axis)
        if middle_K is not None:
            hidden_RK = hidden_RK * summed_gradient(middle_K, cut.axis, cut.sequence)
        return paddle.matmul(hidden_RK * scale, summed_gradient(b_KO, cut.axis, cut.sequence))
    hidden_RK = paddle.matmul(x_RI, summed_gradient(a_IK, cut.axis, cut.sequence)) * scale
    if middle_K is not None:
        hidden_RK = hidden_RK * summed_gradient(middle_K, cut.axis, cut.sequence)
    if cut.sequence:
        hidden_RK = _gather(hidden_RK)
    elif cut.kind != "plain":
        hidden_RK = summed_gradient(hidden_RK, cut.axis)
    return paddle.matmul(hidden_RK, summed_gradient(b_KO, cut.axis, cut.kind == "shared"))


def summed_gradient(tensor: Any, axis: Axis, wanted: bool = True) -> paddle.Tensor:
    """The tensor itself; its gradient is the sum over the tensor-parallel ranks."""
    if not wanted or axis.size == 1:
        return tensor
    from paddle.distributed.collective import _c_identity

    return _c_identity(tensor, group=axis.group)


def _sum(tensor: Any, axis: Axis) -> paddle.Tensor:
    """The sum over the ranks; its gradient is handed on as it is."""
    from paddle.distributed.fleet.layers.mpu import mp_ops

    return mp_ops._mp_allreduce(tensor, group=axis.group, use_calc_stream=True, use_model_parallel=True)


def _gather(tensor: Any) -> paddle.Tensor:
    from paddle.distributed.fleet.utils.sequence_parallel_utils import AllGatherOp

    return AllGatherOp.apply(tensor)


def _scatter(tensor: Any) -> paddle.Tensor:
    from paddle.distributed.fleet.utils.sequence_parallel_utils import ReduceScatterOp

    return ReduceScatterOp.apply(tensor)
