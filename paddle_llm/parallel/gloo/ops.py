"""Operators of tensor parallelism that have no CPU kernel in Paddle 3.3.1, built from other operators.

c_identity, c_split, c_concat and c_softmax_with_cross_entropy raise "Do not support ... for cpu kernel now".
Source of the loss: Shoeybi et al., Megatron-LM (arXiv:1909.08053), section 3.

Shape suffixes name the last dimension: V the vocabulary of this rank (the whole one divided by the size of the group),
1 and 2 these sizes. Leading dimensions are omitted.
"""

from __future__ import annotations

import paddle
from paddle import Tensor
from paddle.autograd import PyLayer, PyLayerContext
from paddle.base.core import ReduceOp
from paddle.distributed.communication.group import Group, _get_global_group, get_group


def _group(ring_id: int) -> Group:
    return _get_global_group() if ring_id == 0 else get_group(ring_id)


class _Identity(PyLayer):
    """Forward: the input. Backward: the sum of the gradients over the group."""

    @staticmethod
    def forward(ctx: PyLayerContext, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return paddle.assign(x)

    @staticmethod
    def backward(ctx: PyLayerContext, dy: Tensor) -> Tensor:
        total = paddle.assign(dy)
        ctx.group.process_group.all_reduce_on_calc_stream(total, ReduceOp.SUM)
        return total


def c_identity(x: Tensor, ring_id: int, use_calc_stream: bool = True, use_model_parallel: bool = True) -> Tensor:
    """Return a copy of `x` whose gradient is summed over the group."""
    return _Identity.apply(x, _group(ring_id)) if _differentiable(x) else paddle.assign(x)


class _Split(PyLayer):
    """Forward: this rank's part of the last dimension. Backward: the parts of all ranks, concatenated."""

    @staticmethod
    def forward(ctx: PyLayerContext, x: Tensor, rank: int, nranks: int, group: Group) -> Tensor:
        ctx.nranks, ctx.group = nranks, group
        return _own_part(x, rank, nranks)

    @staticmethod
    def backward(ctx: PyLayerContext, dy: Tensor) -> Tensor:
        return _concatenated(dy, ctx.nranks, ctx.group)


def c_split(x: Tensor, rank: int, nranks: int, ring_id: int, use_model_parallel: bool = True) -> Tensor:
    """Return part `rank` of the last dimension, [..., D] -> [..., D / nranks]."""
    return _Split.apply(x, rank, nranks, _group(ring_id)) if _differentiable(x) else _own_part(x, rank, nranks)


class _Concat(PyLayer):
    """Forward: the parts of all ranks, concatenated in the last dimension. Backward: this rank's part."""

    @staticmethod
    def forward(ctx: PyLayerContext, x: Tensor, rank: int, nranks: int, group: Group) -> Tensor:
        ctx.rank, ctx.nranks = rank, nranks
        return _concatenated(x, nranks, group)

    @staticmethod
    def backward(ctx: PyLayerContext, dy: Tensor) -> Tensor:
        return _own_part(dy, ctx.rank, ctx.nranks)


def c_concat(
    x: Tensor, rank: int, nranks: int, ring_id: int, use_calc_stream: bool = True, use_model_parallel: bool = True
) -> Tensor:
    """Return the parts of all ranks, concatenated in the last dimension, [..., D] -> [..., D * nranks]."""
    return _Concat.apply(x, rank, nranks, _group(ring_id))


def _own_part(x: Tensor, rank: int, nranks: int) -> Tensor:
    size = x.shape[-1] // nranks
    return paddle.assign(x[..., rank * size : (rank + 1) * size])


def _concatenated(x: Tensor, nranks: int, group: Group) -> Tensor:
    parts = paddle.empty([nranks, *x.shape], dtype=x.dtype)
    group.process_group.all_gather_into_tensor_on_calc_stream(parts, x)
    return paddle.concat(list(parts), axis=-1)


def _differentiable(x: Tensor) -> bool:
    return paddle.is_grad_enabled() and not x.stop_gradient


class _SoftmaxCrossEntropy(PyLayer):
    """Cross entropy of logits whose vocabulary is split over the group; see `c_softmax_with_cross_entropy`."""

    @staticmethod
    def forward(
        ctx: PyLayerContext, logits_V: Tensor, label_1: Tensor, ignore_index: int, group: Group, rank: int
    ) -> tuple[Tensor, Tensor]:
        wide_V = logits_V.astype("float32") if logits_V.dtype in (paddle.float16, paddle.bfloat16) else logits_V
        pg = group.process_group
        largest_1 = wide_V.max(axis=-1, keepdim=True)
        pg.all_reduce_on_calc_stream(largest_1, ReduceOp.MAX)
        shifted_V = wide_V - largest_1
        size = logits_V.shape[-1]
        own_1 = label_1 - rank * size
        is_own_1 = (own_1 >= 0) & (own_1 < size) & (label_1 != ignore_index)
        own_1 = paddle.where(is_own_1, own_1, paddle.zeros_like(own_1))
        picked_1 = paddle.take_along_axis(shifted_V, own_1, axis=-1) * is_own_1.astype(wide_V.dtype)
        exp_V = shifted_V.exp()
        # One reduction for both sums: [..., 0] of the exponentials, [..., 1] of the label's logit.
        sums_2 = paddle.concat([exp_V.sum(axis=-1, keepdim=True), picked_1], axis=-1)
        pg.all_reduce_on_calc_stream(sums_2, ReduceOp.SUM)
        total_1, target_1 = sums_2[..., :1], sums_2[..., 1:]
        counted_1 = (label_1 != ignore_index).astype(wide_V.dtype)
        loss_1 = (total_1.log() - target_1) * counted_1
        softmax_V = exp_V / total_1
        ctx.save_for_backward(softmax_V, own_1, is_own_1, counted_1)
        ctx.dtype = logits_V.dtype
        return softmax_V.astype(logits_V.dtype), loss_1.astype(logits_V.dtype)

    @staticmethod
    def backward(ctx: PyLayerContext, d_softmax_V: Tensor, d_loss_1: Tensor) -> Tensor:
        softmax_V, own_1, is_own_1, counted_1 = ctx.saved_tensor()
        scale_1 = d_loss_1.astype(softmax_V.dtype) * counted_1
        d_logits_V = softmax_V * scale_1
        at_label_1 = -scale_1 * is_own_1.astype(softmax_V.dtype)
        d_logits_V = paddle.put_along_axis(d_logits_V, own_1, at_label_1, axis=-1, reduce="add")
        return d_logits_V.astype(ctx.dtype)


def c_softmax_with_cross_entropy(
    logits: Tensor, label: Tensor, ignore_index: int, ring_id: int, rank: int, nranks: int
) -> tuple[Tensor, Tensor]:
    """Return the softmax and the loss of logits whose vocabulary is split over the group.

    Args:
        logits: Logits of this rank's part of the vocabulary, [..., V].
        label: Labels in the whole vocabulary, [..., 1].
        ignore_index: Label of positions without loss.
        ring_id: Paddle's number of the group.
        rank: Rank in the group.
        nranks: Number of ranks of the group.

    Returns:
        Softmax [..., V] and loss [..., 1]; the loss is 0 where the label is `ignore_index`. As on a GPU, only the loss
        has a gradient.
    """
    return tuple(_SoftmaxCrossEntropy.apply(logits, label, ignore_index, _group(ring_id), rank))


OPERATORS = {
    "c_identity": c_identity,
    "c_split": c_split,
    "c_concat": c_concat,
    "c_softmax_with_cross_entropy": c_softmax_with_cross_entropy,
}
