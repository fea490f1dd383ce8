"""Attention in float32 on a CPU, which skips the half of the scores that the causal mask hides.

`cpu_switch.py` explains why PaddleNLP's own attention is slow.

Shapes: B batch, S queries, T keys, N heads, D head width, H = N x D.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle.autograd import PyLayer

from paddle_llm.models.patches.shared.cpu_switch import all_float32, faster_on_cpu, needs_gradient, only_needed

MIN_BLOCK, _MAX_BLOCKS = 128, 8
_HIDDEN = -1e30


class CausalAttention(PyLayer):
    """softmax(q k^T / sqrt(D)) v with a causal mask; queries, keys, values and the result are [B, S, N, D].

    Queries are processed in blocks, each with the keys up to its end.
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
        """Return the attention output.

        Args:
            ctx: Context of the PyLayer.
            q_BSND: Queries.
            k_BSND: Keys.
            v_BSND: Values.
            lengths: Lengths of the samples of the row, between which there is no attention; None for one sample.
            slopes: Slopes of ALiBi (Press et al. 2022), one per head, which are multiplied by the key's position and
                added to the scores; None without ALiBi.
        """
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
        ctx.needed = needs_gradient(q_BSND, k_BSND, v_BSND)
        ctx.save_for_backward(q, k, v, *weights)
        return _heads_last(paddle.concat(outputs, axis=2))

    @staticmethod
    def backward(ctx: Any, grad_BSND: paddle.Tensor) -> tuple[paddle.Tensor | None, ...]:
        """Return the gradients of queries, keys and values."""
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
        return only_needed(ctx.needed, grad_q, grad_k, grad_v)


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


@faster_on_cpu
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
    """Compute `scaled_dot_product_attention` of PaddleNLP's LLaMA; a mask of None is the causal one.

    PaddleNLP's own function computes what the faster version does not support.
    """
    states = (query_states, key_states, value_states)
    extras = (alibi, attn_mask_startend_row_indices, reshard_layer)
    plain = all(extra is None for extra in extras) and not output_attentions and not sequence_parallel
    if plain and _continues_a_cache(states, attention_mask, config):
        return _masked_attention(*states, attention_mask)
    whole_rows = attention_mask is None and all(extra is None for extra in extras) and not output_attentions
    whole_rows = whole_rows and key_states.shape[1] == query_states.shape[1]
    if not whole_rows or config.use_flash_attention or not all_float32(*states):
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


@faster_on_cpu
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
    """Compute `scaled_dot_product_attention` of PaddleNLP's Qwen2, whose signature differs from LLaMA's."""
    states = (query_states, key_states, value_states)
    packed = named.get("attn_mask_startend_row_indices") is not None
    plain = not packed and not others and not output_attentions and not sequence_parallel
    if plain and _continues_a_cache(states, attention_mask, config):
        return _masked_attention(*states, attention_mask)
    named["sequence_parallel"] = sequence_parallel
    return original(query_states, config, key_states, value_states, attention_mask, output_attentions, *others, **named)


def _continues_a_cache(states: tuple[paddle.Tensor, ...], mask: Any, config: Any) -> bool:
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
    return all_float32(*states) and not any(needs_gradient(*states))


def _masked_attention(
    q_BSND: paddle.Tensor, k_BTND: paddle.Tensor, v_BTND: paddle.Tensor, mask_B1ST: paddle.Tensor
) -> paddle.Tensor:
    """Compute attention [B, S, H]. Most of the time, it copies all cached keys and values for each new token."""
    q, k, v = (_heads_first(states) for states in (q_BSND * (1.0 / math.sqrt(q_BSND.shape[-1])), k_BTND, v_BTND))
    scores = paddle.matmul(q, k, transpose_y=True).add_(mask_B1ST)
    output = _heads_last(paddle.matmul(F.softmax_(scores, axis=-1), v))
    return output.reshape([*output.shape[:2], -1])


@faster_on_cpu
def decoder_mask(original: Any, attention_mask: Any, input_shape: Any, past_key_values_length: int, dtype: Any) -> Any:
    """Return None, which means the causal mask, if PaddleNLP would build that mask.

    In a pipeline on a CPU, PaddleNLP passes the sample ends of packed rows as a mask; they are returned unchanged.
    """
    if attention_mask is not None and attention_mask.dtype == paddle.int32:
        return attention_mask
    if past_key_values_length == 0 and input_shape[-1] > 1:
        if attention_mask is None:
            return None
        if attention_mask.ndim == 2 and bool(attention_mask.astype("bool").all()):
            return None
    return original(attention_mask, input_shape, past_key_values_length, dtype)
