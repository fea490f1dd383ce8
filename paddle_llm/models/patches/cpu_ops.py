"""Faster versions of element-wise operations on a CPU, with the same results. Enabled only on a CPU.

PaddleNLP's networks are written for GPUs, where small operations are fused. On a CPU (Paddle 3.3.1) some of them cost
as much as a matrix product: `pow(2)` takes 100 times as long as `square`, a sum over rows 50 times as long as a product
with ones, a transposed copy 7 times as long as split and concat, and a product that broadcasts in the middle 8 times as
long as one that does not. Each PyLayer below uses the cheap operation and saves for the backward pass only what it
needs. Attention also skips the half of the scores that the causal mask would hide.

Shapes: B batch, S sequence, N heads, D head width, H = N x D, R = B x S rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import wraps
from typing import Any

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle.autograd import PyLayer

from paddle_llm.models.patches.rms_norm import is_fused

MIN_BLOCK, _MAX_BLOCKS = 128, 8
_HIDDEN = -1e30
_state = {"enabled": False}


def enable() -> None:
    """Use the faster operations from now on, in all networks of this process."""
    _state["enabled"] = True


def disable() -> None:
    """Use PaddleNLP's own operations from now on."""
    _state["enabled"] = False


def is_enabled() -> bool:
    """Return whether the faster operations are used."""
    return _state["enabled"]


def _on_cpu(fast: Callable[..., Any]) -> Callable[[Any], Any]:
    """Return a decorator that adds a faster version to an operation of PaddleNLP.

    Args:
        fast: The faster version, whose first argument is PaddleNLP's operation.
    """

    def add_to(original: Any) -> Any:
        @wraps(original)
        def operation(*args: Any, **named: Any) -> Any:
            return fast(original, *args, **named) if _state["enabled"] else original(*args, **named)

        return operation

    return add_to


def _plain(*tensors: paddle.Tensor) -> bool:
    return all(tensor.dtype == paddle.float32 for tensor in tensors)


def _wants_gradient(*tensors: paddle.Tensor) -> list[bool]:
    return [not tensor.stop_gradient for tensor in tensors]


def _wanted(ctx: Any, *gradients: paddle.Tensor | None) -> tuple[paddle.Tensor | None, ...]:
    """Return the gradients with None for inputs that need none, as Paddle requires."""
    return tuple(gradient if wanted else None for gradient, wanted in zip(gradients, ctx.wanted, strict=True))


# ---- RMSNorm --------------------------------------------------------------------------------------------------------


class RMSNorm(PyLayer):
    """x / sqrt(mean(x^2) + epsilon) * weight over the last axis (Zhang and Sennrich 2019, eq. 4)."""

    @staticmethod
    def forward(ctx: Any, x: paddle.Tensor, weight_H: paddle.Tensor, epsilon: float) -> paddle.Tensor:
        x_RH = x.reshape([-1, x.shape[-1]])
        scale_RH = paddle.rsqrt(_row_means(x_RH.square()) + epsilon).expand(x_RH.shape)
        normal_RH = x_RH * scale_RH
        ctx.wanted = _wants_gradient(x, weight_H)
        ctx.save_for_backward(normal_RH, scale_RH, weight_H)
        return (normal_RH * weight_H).reshape(x.shape)

    @staticmethod
    def backward(ctx: Any, grad: paddle.Tensor) -> tuple[paddle.Tensor | None, ...]:
        normal_RH, scale_RH, weight_H = ctx.saved_tensor()
        grad_RH = grad.reshape(normal_RH.shape)
        grad_weight_H = None
        if ctx.wanted[1]:
            grad_weight_H = paddle.matmul(paddle.ones([1, grad_RH.shape[0]]), grad_RH * normal_RH).flatten()
        grad_RH = grad_RH * weight_H
        along_RH = _row_means(grad_RH * normal_RH).expand(grad_RH.shape)
        return _wanted(ctx, ((grad_RH - normal_RH * along_RH) * scale_RH).reshape(grad.shape), grad_weight_H)


def _row_means(x_RH: paddle.Tensor) -> paddle.Tensor:
    """Return the means [R, 1]; a product with ones is many times faster than Paddle's reduction."""
    width = x_RH.shape[-1]
    return paddle.matmul(x_RH, paddle.full([width, 1], 1.0 / width))


@_on_cpu
def llama_norm(original: Any, self: Any, hidden_states: paddle.Tensor) -> paddle.Tensor:
    if self.config.use_fused_rms_norm or not _plain(hidden_states, self.weight):
        return original(self, hidden_states)
    return RMSNorm.apply(hidden_states, self.weight, self.variance_epsilon)


@_on_cpu
def chatglm2_norm(original: Any, self: Any, hidden_states: paddle.Tensor) -> paddle.Tensor:
    if is_fused(self) or not _plain(hidden_states, self.weight):
        return original(self, hidden_states)
    return RMSNorm.apply(hidden_states, self.weight, self.epsilon)


# ---- rotary embedding -----------------------------------------------------------------------------------------------


class Rotate(PyLayer):
    """x * cos + rotate_half(x) * sin, the rotary embedding of Su et al. 2021 in LLaMA's order of dimensions.

    `cos_SND` and `sin_SND` have all heads (and all rows, if positions differ between rows); the first half of `sin_SND`
    is negative.
    """

    @staticmethod
    def forward(ctx: Any, x_BSND: paddle.Tensor, cos_SND: paddle.Tensor, sin_SND: paddle.Tensor) -> paddle.Tensor:
        ctx.save_for_backward(cos_SND, sin_SND)
        return x_BSND * cos_SND + _swap_halves(x_BSND) * sin_SND

    @staticmethod
    def backward(ctx: Any, grad_BSND: paddle.Tensor) -> paddle.Tensor:
        cos_SND, sin_SND = ctx.saved_tensor()
        return grad_BSND * cos_SND + _swap_halves(grad_BSND * sin_SND)


def _swap_halves(x: paddle.Tensor) -> paddle.Tensor:
    half = x.shape[-1] // 2
    return paddle.concat([x[..., half:], x[..., :half]], axis=-1)


@_on_cpu
def rotary_embedding(
    original: Any, q: Any, k: Any, cos: Any, sin: Any, position_ids: Any
) -> tuple[paddle.Tensor, paddle.Tensor]:
    length = q.shape[1]
    alike = _counts_up(position_ids, length)
    if not _plain(q, k, cos, sin) or length > cos.shape[1] or (not alike and position_ids.shape != q.shape[:2]):
        return original(q, k, cos, sin, position_ids)
    half = cos.shape[-1] // 2
    cos_S1D, sin_S1D = (table[0, :length] if alike else table[0][position_ids] for table in (cos, sin))
    sin_S1D = paddle.concat([-sin_S1D[..., :half], sin_S1D[..., half:]], axis=-1)
    tables = {heads: _for_heads(cos_S1D, sin_S1D, heads) for heads in {q.shape[2], k.shape[2]}}
    return Rotate.apply(q, *tables[q.shape[2]]), Rotate.apply(k, *tables[k.shape[2]])


def _for_heads(cos_S1D: paddle.Tensor, sin_S1D: paddle.Tensor, heads: int) -> tuple[paddle.Tensor, paddle.Tensor]:
    return paddle.concat([cos_S1D] * heads, axis=-2), paddle.concat([sin_S1D] * heads, axis=-2)


def _counts_up(position_ids: Any, length: int) -> bool:
    """Return whether positions are 0, 1, 2 ... in every sample."""
    return position_ids is None or (
        position_ids.shape[-1] == length and bool((position_ids == paddle.arange(length)).all())
    )


# ---- attention ------------------------------------------------------------------------------------------------------


class CausalAttention(PyLayer):
    """softmax(q k^T / sqrt(D)) v with a causal mask; q, k, v and the result are [B, S, N, D].

    Queries are processed in blocks, each with the keys up to its end. `lengths` are the lengths of samples in the row
    that do not see each other. `slopes` of ALiBi, one per head, are multiplied by the key's position and added to the
    scores.
    """

    @staticmethod
    def forward(
        ctx: Any,
        q_BSND: paddle.Tensor,
        k_BSND: paddle.Tensor,
        v_BSND: paddle.Tensor,
        lengths: list[int] | None = None,
        slopes: list[float] | None = None,
    ) -> paddle.Tensor:
        length, scale = q_BSND.shape[1], 1.0 / math.sqrt(q_BSND.shape[-1])
        q, k, v = _heads_first(q_BSND * scale), _heads_first(k_BSND), _heads_first(v_BSND)
        weights, outputs = [], []
        for start, stop in _blocks(length):
            scores = paddle.matmul(q[:, :, start:stop], k[:, :, :stop], transpose_y=True)
            scores.add_(_causal_bias(start, stop) if lengths is None else _segment_bias(lengths, start, stop))
            if slopes is not None:
                scores.add_(paddle.to_tensor(np.outer(slopes, np.arange(stop)).astype(np.float32)).unsqueeze(1))
            weights.append(F.softmax_(scores, axis=-1))
            outputs.append(paddle.matmul(weights[-1], v[:, :, :stop]))
        ctx.wanted = _wants_gradient(q_BSND, k_BSND, v_BSND)
        ctx.save_for_backward(q, k, v, *weights)
        return _heads_last(paddle.concat(outputs, axis=2))

    @staticmethod
    def backward(ctx: Any, grad_BSND: paddle.Tensor) -> tuple[paddle.Tensor | None, ...]:
        q, k, v, *weights = ctx.saved_tensor()
        grad = _heads_first(grad_BSND)
        blocks = _blocks(q.shape[2])
        grads_q: list[paddle.Tensor] = []
        grads_k: list[Any] = [None] * len(blocks)
        grads_v: list[Any] = [None] * len(blocks)
        for index, (start, stop) in enumerate(blocks):
            weight, part = weights[index], grad[:, :, start:stop]
            grad_weight = paddle.matmul(part, v[:, :, :stop], transpose_y=True)
            grad_scores = paddle._C_ops.softmax_grad(weight, grad_weight, -1)
            grads_q.append(paddle.matmul(grad_scores, k[:, :, :stop]))
            grad_k = paddle.matmul(grad_scores, q[:, :, start:stop], transpose_x=True)
            grad_v = paddle.matmul(weight, part, transpose_x=True)
            for earlier, (begin, end) in enumerate(blocks[: index + 1]):
                _add_to(grads_k, earlier, grad_k[:, :, begin:end])
                _add_to(grads_v, earlier, grad_v[:, :, begin:end])
        grad_q = _heads_last(paddle.concat(grads_q, axis=2)) * (1.0 / math.sqrt(q.shape[-1]))
        grad_k, grad_v = (_heads_last(paddle.concat(parts, axis=2)) for parts in (grads_k, grads_v))
        return _wanted(ctx, grad_q, grad_k, grad_v)


def _blocks(length: int) -> list[tuple[int, int]]:
    size = max(MIN_BLOCK, -(-length // _MAX_BLOCKS))
    return [(start, min(start + size, length)) for start in range(0, length, size)]


def _causal_bias(start: int, stop: int) -> paddle.Tensor:
    """Return the bias [stop - start, stop] that hides later keys from the queries [start, stop)."""
    return paddle.triu(paddle.full([stop - start, stop], _HIDDEN), diagonal=start + 1)


def _segment_bias(lengths: list[int], start: int, stop: int) -> paddle.Tensor:
    """Return the bias [stop - start, stop] that hides later keys and other samples from the queries [start, stop)."""
    sample = np.repeat(np.arange(len(lengths)), lengths)[:stop]
    position = np.arange(stop)
    seen = (sample[start:, None] == sample) & (position[start:, None] >= position)
    return paddle.to_tensor(np.where(seen, np.float32(0), np.float32(_HIDDEN)))


def _add_to(sums: list[Any], index: int, term: paddle.Tensor) -> None:
    sums[index] = term if sums[index] is None else sums[index] + term


def _heads_first(x_BSND: paddle.Tensor) -> paddle.Tensor:
    """Return [B, N, S, D]; split and concat copy whole rows, Paddle's transpose copies single numbers."""
    batch, length, heads, width = x_BSND.shape
    parts = paddle.split(x_BSND.reshape([batch, length, heads * width]), heads, axis=-1)
    return paddle.concat(parts, axis=1).reshape([batch, heads, length, width])


def _heads_last(x_BNSD: paddle.Tensor) -> paddle.Tensor:
    batch, heads, length, width = x_BNSD.shape
    parts = paddle.split(x_BNSD.reshape([batch, heads * length, width]), heads, axis=1)
    return paddle.concat(parts, axis=-1).reshape([batch, length, heads, width])


@_on_cpu
def decoder_attention(
    original: Any,
    query_states: paddle.Tensor,
    config: Any,
    key_states: paddle.Tensor,
    value_states: paddle.Tensor,
    attention_mask: Any,
    output_attentions: bool,
    alibi: Any = None,
    attn_mask_startend_row_indices: Any = None,
    sequence_parallel: bool = False,
    reshard_layer: Any = None,
    npu_is_casual: bool = False,
    skip_recompute: bool = False,
) -> Any:
    """Compute attention with PaddleNLP's signature; a mask of None is causal. Other cases are passed to PaddleNLP."""
    states = (query_states, key_states, value_states)
    extras = (alibi, attn_mask_startend_row_indices, reshard_layer)
    plain = all(extra is None for extra in extras) and not output_attentions and not sequence_parallel
    if plain and _generates(states, attention_mask, config):
        return _masked_attention(*states, attention_mask)
    usual = attention_mask is None and alibi is None and reshard_layer is None and not output_attentions
    usual = usual and key_states.shape[1] == query_states.shape[1]
    if not usual or attn_mask_startend_row_indices is not None or config.use_flash_attention or not _plain(*states):
        return original(
            query_states,
            config,
            key_states,
            value_states,
            attention_mask,
            output_attentions,
            alibi=alibi,
            attn_mask_startend_row_indices=attn_mask_startend_row_indices,
            sequence_parallel=sequence_parallel,
            reshard_layer=reshard_layer,
            npu_is_casual=npu_is_casual,
            skip_recompute=skip_recompute,
        )
    batch, length, heads, width = query_states.shape
    output = CausalAttention.apply(*states)
    if sequence_parallel:
        return output.reshape([batch * length, heads * width])
    return output.reshape([batch, length, heads * width])


@_on_cpu
def cached_attention(
    original: Any,
    query_states: paddle.Tensor,
    config: Any,
    key_states: paddle.Tensor,
    value_states: paddle.Tensor,
    attention_mask: Any,
    output_attentions: bool,
    *others: Any,
    sequence_parallel: bool = False,
    **named: Any,
) -> Any:
    states = (query_states, key_states, value_states)
    ends = named.get("attn_mask_startend_row_indices")
    plain = ends is None and not others and not output_attentions and not sequence_parallel
    if plain and _generates(states, attention_mask, config):
        return _masked_attention(*states, attention_mask)
    named["sequence_parallel"] = sequence_parallel
    return original(query_states, config, key_states, value_states, attention_mask, output_attentions, *others, **named)


def _generates(states: tuple[paddle.Tensor, ...], mask: Any, config: Any) -> bool:
    """Return whether new tokens see cached ones through an added mask and no gradient is needed."""
    query, key, _ = states
    if (
        key.shape[1] <= query.shape[1]
        or mask is None
        or mask.ndim != 4
        or mask.dtype != paddle.float32
        or config.use_flash_attention
    ):
        return False
    return _plain(*states) and not any(_wants_gradient(*states))


def _masked_attention(
    q_BSND: paddle.Tensor, k_BTND: paddle.Tensor, v_BTND: paddle.Tensor, mask_B1ST: paddle.Tensor
) -> paddle.Tensor:
    """Compute attention [B, S, H]. Most of its time is copying keys and values of all tokens for each new one."""
    q, k, v = (_heads_first(states) for states in (q_BSND * (1.0 / math.sqrt(q_BSND.shape[-1])), k_BTND, v_BTND))
    scores = paddle.matmul(q, k, transpose_y=True).add_(mask_B1ST)
    output = _heads_last(paddle.matmul(F.softmax_(scores, axis=-1), v))
    return output.reshape([*output.shape[:2], -1])


@_on_cpu
def decoder_mask(original: Any, attention_mask: Any, input_shape: Any, past_key_values_length: int, dtype: Any) -> Any:
    """Return None, which means the causal mask, if PaddleNLP would build that mask.

    In a pipeline on a CPU, PaddleNLP passes `ends` of packed rows as a mask; they are returned unchanged.
    """
    if attention_mask is not None and attention_mask.dtype == paddle.int32:
        return attention_mask
    if past_key_values_length == 0 and input_shape[-1] > 1:
        if attention_mask is None:
            return None
        if attention_mask.ndim == 2 and bool(attention_mask.astype("bool").all()):
            return None
    return original(attention_mask, input_shape, past_key_values_length, dtype)


# ---- SwiGLU ---------------------------------------------------------------------------------------------------------


class SwiGLU(PyLayer):
    """silu(gate) * up (Shazeer 2020)."""

    @staticmethod
    def forward(ctx: Any, gate: paddle.Tensor, up: paddle.Tensor) -> paddle.Tensor:
        sigmoid = F.sigmoid(gate)
        silu = gate * sigmoid
        ctx.wanted = _wants_gradient(gate, up)
        ctx.save_for_backward(sigmoid, silu, up)
        return silu * up

    @staticmethod
    def backward(ctx: Any, grad: paddle.Tensor) -> tuple[paddle.Tensor | None, ...]:
        sigmoid, silu, up = ctx.saved_tensor()
        slope = sigmoid + silu - silu * sigmoid
        return _wanted(ctx, grad * up * slope, grad * silu)


@_on_cpu
def swiglu(original: Any, x: paddle.Tensor, y: Any = None) -> paddle.Tensor:
    if y is None:
        x, y = paddle.chunk(x, 2, axis=-1)
    return SwiGLU.apply(x, y) if _plain(x, y) else original(x, y)
