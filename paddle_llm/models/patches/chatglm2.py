"""Corrections of ChatGLM2 and ChatGLM3 (PaddleNLP 3.0.0b4).

- With flash attention the output [B, S, H] is read as [S, B, H]: samples of a batch are mixed.
- Recompute of the attention block (full_attn) fails in the backward pass: Paddle's older recompute, which it uses only
  there, cannot return a missing cache.
- In a pipeline without position ids, the rotary embedding is taken for position ids and is not applied; whole layers
  are not recomputed; in 16 bits the rotary angles are rounded before the cosine is taken, so that positions beyond 256
  are wrong; the names of its weights lack their prefix; it builds a mask [B, 1, S, S] and sends it to every stage.
- The rotary embedding gives queries and keys the type of its table (O1: float32); no fused attention supports that
  together with 16-bit values.
- Its RMSNorm has no fused version.
- Dropout of attention probabilities: under tensor parallelism the heads of different ranks drop the same positions, on
  a CPU and with flash attention. On a CPU the shards of a sequence do, too.

Its encoder turns a mask of booleans into numbers that are added to scores. Sample starts are passed the same way, as
booleans [B, 1, 1, S]. Whole rows need no mask: [1, 1, 1, 1] is the marker of the causal mask (`is_causal_marker`).

Shapes: B rows, S positions, N heads, D head width, H = N x D.
"""

from __future__ import annotations

import copy
from functools import partial, wraps
from types import MethodType
from typing import Any

import paddle

from paddle_llm.core.upstream import replace, replace_forward
from paddle_llm.families import FAMILIES
from paddle_llm.models.patches.shared import cpu_elementwise
from paddle_llm.models.patches.shared.attention_kernels import added_mask, fused_attention
from paddle_llm.models.patches.shared.dropout_rng import named_random_state
from paddle_llm.models.patches.shared.forward import WHY_PACKED_ROWS, stage_inputs, with_packed_rows
from paddle_llm.models.patches.shared.packed_rows import attend, is_sample_ends, sample_ends_of_starts, sample_starts
from paddle_llm.models.patches.shared.rms_norm import use_fused_norm, with_fused_norm

_CHATGLM2_PREFIX = FAMILIES["chatglm_v2"].base_prefix


def apply() -> None:
    """Replace attributes of PaddleNLP's classes."""
    from paddlenlp.transformers.chatglm_v2 import modeling

    # Recompute and random states.
    why = "The older recompute cannot return a missing cache."
    replace(modeling, "recompute", partial(modeling.recompute, use_reentrant=False), why)
    replace(modeling, "seed_guard_context", named_random_state, "It does nothing on a CPU.")
    # Layers. What the faster norm on a CPU does not support is computed by the fused norm or PaddleNLP's.
    rotate = _in_states_dtype(modeling.apply_rotary_pos_emb)
    replace(modeling, "apply_rotary_pos_emb", rotate, "It gives queries and keys the type of its table.")
    norm = cpu_elementwise.chatglm2_norm(with_fused_norm(modeling.RMSNorm.forward))
    replace(modeling.RMSNorm, "forward", norm, "It has no fused version and is slow on a CPU.")
    # Masks and packed rows, in one process and in a pipeline.
    masks = _masks(modeling.ChatGLMv2PretrainedModel.get_masks)
    why = f"{WHY_PACKED_ROWS} It builds a causal mask that flash attention does not need."
    replace(modeling.ChatGLMv2PretrainedModel, "get_masks", masks, why)
    attention = chatglm2_attention(_with_causal_mask(modeling.CoreAttention.forward))
    replace(modeling.CoreAttention, "forward", attention, WHY_PACKED_ROWS)
    network = modeling.ChatGLMv2ForCausalLM
    replace_forward(network, with_packed_rows(network.forward, "attention_mask"), WHY_PACKED_ROWS)
    _apply_to_pipeline(masks)


def apply_to_network(model: Any) -> None:
    """Use the fused norm and the corrected flash attention in one network, if it has these switches."""
    if model.config.use_fused_rms_norm:
        use_fused_norm(model)
    for layer in model.sublayers():
        if hasattr(layer, "core_attention") and layer.config.use_flash_attention:
            layer.config = copy.copy(layer.config)
            layer.config.use_flash_attention = False  # its own branch, which mixes samples, is not taken
            layer.core_attention.forward = MethodType(chatglm2_attention(_flash_core_attention), layer.core_attention)


def _masks(get_masks: Any) -> Any:
    def masks(self: Any, input_ids: Any, past_key_values: Any, padding_mask: Any = None) -> paddle.Tensor:
        if is_sample_ends(padding_mask):
            return sample_starts(padding_mask).unsqueeze([1, 2])
        if padding_mask is None and not past_key_values and self.config.use_flash_attention:
            return paddle.ones([1, 1, 1, 1], dtype="bool")
        return get_masks(self, input_ids, past_key_values, padding_mask=padding_mask)

    return masks


def is_causal_marker(mask: paddle.Tensor, length: int) -> bool:
    """Return whether a mask of ChatGLM2's layers is the marker of the causal mask of `length` queries."""
    return mask.shape[-2:] == [1, 1] and length > 1


def _with_causal_mask(original: Any) -> Any:
    """Return ChatGLM2's plain attention, which builds the causal mask if it gets the marker."""

    @wraps(original)
    def attention(self: Any, query: paddle.Tensor, key: paddle.Tensor, value: paddle.Tensor, mask: Any) -> Any:
        length = query.shape[0]
        if is_causal_marker(mask, length):
            lowest = paddle.full([1, 1, length, length], paddle.finfo(mask.dtype).min, mask.dtype)
            mask = paddle.triu(lowest, diagonal=1)
        return original(self, query, key, value, mask)

    return attention


def chatglm2_attention(original: Any) -> Any:
    """Return ChatGLM2's attention (states [S, B, N, D]) that supports packed rows, whose mask marks sample starts."""

    @wraps(original)
    def attention(self: Any, query: paddle.Tensor, key: paddle.Tensor, value: paddle.Tensor, mask: Any) -> Any:
        length, batch = query.shape[:2]
        if mask.shape[2] != 1 or length == 1 or key.shape[0] != length or is_causal_marker(mask, length):
            return original(self, query, key, value, mask)
        states = [state.transpose([1, 0, 2, 3]) for state in (query, key, value)]
        dropout = self.config.attention_dropout if self.training else 0.0
        with named_random_state("local_seed"):
            output_BSND = attend(*states, sample_ends_of_starts(mask[:, 0, 0] == 0), dropout=dropout)
        rows = [length * batch] if self.config.sequence_parallel else [length, batch]
        return output_BSND.transpose([1, 0, 2, 3]).reshape([*rows, -1])

    return attention


def _flash_core_attention(
    self: Any,
    query_SBND: paddle.Tensor,
    key_SBND: paddle.Tensor,
    value_SBND: paddle.Tensor,
    attention_mask: paddle.Tensor,
) -> paddle.Tensor:
    """Compute attention [S, B, H] with Paddle's fused kernel; the mask is added to scores, or is the causal marker."""
    query, key, value = (tensor.transpose([1, 0, 2, 3]) for tensor in (query_SBND, key_SBND, value_SBND))
    length, batch = query_SBND.shape[:2]
    causal = is_causal_marker(attention_mask, length)
    with named_random_state("local_seed"):
        output_BSND = fused_attention(
            query,
            key,
            value,
            attn_mask=None if causal else attention_mask,
            is_causal=causal,
            dropout_p=self.config.attention_dropout,
            training=self.training,
        )
    output = output_BSND.transpose([1, 0, 2, 3]).reshape([length, batch, self.hidden_size_per_partition])
    return output.reshape([length * batch, -1]) if self.config.sequence_parallel else output


def _in_states_dtype(rotate: Any) -> Any:
    """Return the rotary embedding with results in the type of the states, not of its table (O1: float32)."""

    @wraps(rotate)
    def rotated(states: paddle.Tensor, table: paddle.Tensor) -> paddle.Tensor:
        result = rotate(states, table)
        return result if result.dtype == states.dtype else result.astype(states.dtype)

    return rotated


# ---- pipeline -------------------------------------------------------------------------------------------------------


def _apply_to_pipeline(masks: Any) -> None:
    """Replace attributes of the pipeline.

    Args:
        masks: The corrected `get_masks`.
    """
    from paddlenlp.transformers.chatglm_v2 import modeling_pp

    pipeline = modeling_pp.ChatGLMv2ForCausalLMPipe
    add_layer = _with_prefix(pipeline.add_sequential_layer)
    replace(pipeline, "add_sequential_layer", add_layer, "Names of weights lack their prefix.")
    why = "Without position ids it takes the rotary embedding for them; it sends a mask [B, 1, S, S] to all stages."
    replace(modeling_pp.EmbeddingPipe, "forward", _embedding_forward(modeling_pp), why)
    replace(modeling_pp.GLMBlockPipe, "forward", _block_forward(modeling_pp), "It does not recompute whole layers.")
    replace(modeling_pp, "forward_impl", _rotary_cache, "It rounds angles to 16 bits before it takes their cosine.")
    why = f"{WHY_PACKED_ROWS} It builds a causal mask that flash attention does not need."
    replace(pipeline, "get_masks", masks, why)
    replace(pipeline, "_prepare_pipeline_inputs_func", staticmethod(stage_inputs), WHY_PACKED_ROWS)


def _with_prefix(add_layer: Any) -> Any:
    def add_named_layer(self: Any, layer: Any, name_prefix: str = "") -> None:
        add_layer(self, layer, f"{_CHATGLM2_PREFIX}{name_prefix}")

    return add_named_layer


def _embedding_forward(modeling_pp: Any) -> Any:
    embed, embed_words = modeling_pp.EmbeddingPipe.forward, modeling_pp.Embedding.forward

    def embedding_forward(self: Any, args: Any) -> Any:
        input_ids, mask, positions, *_ = modeling_pp.parse_args(args)
        if positions is None:
            positions = paddle.arange(input_ids.shape[1]).expand(input_ids.shape)
        if mask is not None and not is_sample_ends(mask):
            return embed(self, (input_ids, mask, positions))
        hidden = embed_words(self, input_ids)
        if self.config.sequence_parallel:
            hidden = modeling_pp.ScatterOp.apply(hidden.reshape([-1, hidden.shape[-1]]))
        if mask is None:
            mask = paddle.zeros([1, 1, 1, 1], hidden.dtype)
        else:
            mask = added_mask(sample_starts(mask), hidden.dtype).unsqueeze([1, 2])
        table = modeling_pp.forward_impl(self, self.config.max_sequence_length, self.config.kv_channels // 2)
        return modeling_pp.return_args(hidden, mask, positions, table[positions].transpose([1, 0, 2, 3]))

    return embedding_forward


def _block_forward(modeling_pp: Any) -> Any:
    from paddle.distributed.fleet.recompute.recompute import recompute

    block = modeling_pp.GLMBlock

    def block_forward(self: Any, args: Any) -> Any:
        hidden, mask, positions, rotary, *_ = modeling_pp.parse_args(args)

        def run(hidden: paddle.Tensor, mask: paddle.Tensor, rotary: paddle.Tensor) -> paddle.Tensor:
            return block.forward(self, hidden, mask, rotary, None, False)[0]

        whole = self.enable_recompute and self.config.recompute_granularity == "full" and not hidden.stop_gradient
        if whole and self.layer_number not in (self.config.no_recompute_layers or ()):
            hidden = recompute(run, hidden, mask, rotary, use_reentrant=self.config.recompute_use_reentrant)
        else:
            hidden = run(hidden, mask, rotary)
        return modeling_pp.return_args(hidden, mask, positions, rotary)

    return block_forward


def _rotary_cache(self: Any, seq_len: int, n_elem: int, base: int = 10000) -> paddle.Tensor:
    """Return cosines and sines [seq_len, n_elem / 2, 2], whose angles are computed in float32."""
    frequencies = 1.0 / (base ** (paddle.arange(0, n_elem, 2, dtype="float32") / n_elem))
    angles = paddle.outer(paddle.arange(seq_len, dtype="float32"), frequencies)
    return paddle.stack([angles.cos(), angles.sin()], axis=-1).astype(self.default_dtype)
