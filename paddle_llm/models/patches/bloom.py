"""Corrections of BLOOM (PaddleNLP 3.0.0b4): dropout, masks and ALiBi, in one process and in a pipeline.

Dropout of attention probabilities: under tensor parallelism the heads of different ranks drop the same positions.

PaddleNLP builds the mask [B x N, S, T] in float32, three times, and adds ALiBi to it in every layer. For 4 rows of 2048
tokens of BLOOM-7B1 it keeps 2 GB, with a peak of 6 GB. Here a layer gets

    sample_ends [B, S] int32    packed rows (`packed_rows.py`)
    [B or 1, N, S, T]           with flash attention: ALiBi and mask in one, in the type of the states
    [S, T] or [B x N, S, T]     otherwise: the mask in float32; ALiBi is separate

and the first dimension is 1, or absent, if all rows have the same mask: whole rows, as in training.
The network accepts masks of booleans only. Sample starts are passed to it as booleans [B, 1, 1, S] and become
`sample_ends` for its layers.

Shapes: B rows, S queries, T keys, N attention heads of this rank, D head width.
"""

from __future__ import annotations

from functools import lru_cache, wraps
from typing import Any

import paddle

from paddle_llm.core.upstream import replace, replace_forward
from paddle_llm.models.patches.shared.attention_kernels import fused_attention
from paddle_llm.models.patches.shared.dropout_rng import named_random_state
from paddle_llm.models.patches.shared.forward import WHY_PACKED_ROWS, with_packed_rows
from paddle_llm.models.patches.shared.packed_rows import (
    alibi_mask,
    attend,
    is_sample_ends,
    sample_ends_of_starts,
    sample_starts,
)


def apply() -> None:
    """Replace attributes of PaddleNLP's classes. The pipeline (`bloom_pipeline.py`) consists of the same blocks."""
    from paddlenlp.transformers.bloom import modeling

    # Dropout from a random state that tensor-parallel ranks share, or from one per rank inside attention.
    replace(
        modeling,
        "dropout_add",
        _in_random_state("global_seed", modeling.dropout_add),
        "Its dropout is not the same on tensor-parallel ranks.",
    )
    # Attention. The wrapper for packed rows and flash attention is the outer one: it sets the random state itself.
    attention = bloom_attention(_in_random_state("local_seed", modeling.BloomAttention.forward))
    why = f"{WHY_PACKED_ROWS} It has no flash attention, and dropout hides the same positions from heads of different ranks."
    replace(modeling.BloomAttention, "forward", attention, why)
    # Masks and packed rows.
    prepare = wraps(modeling.BloomModel._prepare_attn_mask)(attn_mask)
    replace(modeling.BloomModel, "_prepare_attn_mask", prepare, "Its masks grow with batch x heads.")
    network = modeling.BloomForCausalLM
    replace_forward(network, with_packed_rows(_with_sample_starts(network.forward), "attention_mask"), WHY_PACKED_ROWS)


def _in_random_state(name: str, function: Any) -> Any:
    def replacement(*args: Any, **kwargs: Any) -> Any:
        with named_random_state(name):
            return function(*args, **kwargs)

    return replacement


def _with_sample_starts(forward: Any) -> Any:
    @wraps(forward)
    def replacement(self: Any, *args: Any, **inputs: Any) -> Any:
        mask = inputs.get("attention_mask")
        if is_sample_ends(mask):
            inputs["attention_mask"] = sample_starts(mask).unsqueeze([1, 2])
        elif mask is None and len(args) <= 1 and all(inputs.get(name) is None for name in ("cache", "past_key_values")):
            inputs["attention_mask"] = whole_rows_mask()
        return forward(self, *args, **inputs)

    return replacement


def slopes_of(config: Any) -> list[float]:
    """Return the slopes of ALiBi (Press et al. 2022) of this rank's heads [N]."""
    heads = config.n_head // config.tensor_parallel_degree
    first = config.tensor_parallel_rank * heads
    return _all_slopes(config.n_head)[first : first + heads]


@lru_cache
def _all_slopes(heads: int) -> list[float]:
    """Return PaddleNLP's slopes; once per process, because the host waits for the copy from the device."""
    from paddlenlp.transformers.bloom.modeling import build_alibi_tensor

    with paddle.amp.auto_cast(False):
        return build_alibi_tensor(paddle.ones([1, 2]), heads, "float32")[0, :, 1].tolist()


def layer_mask(mask: paddle.Tensor | None, length: int, total: int, config: Any, dtype: paddle.dtype) -> paddle.Tensor:
    """Return the mask of a layer for rows that are not packed.

    Args:
        mask: Positions that hold a token [B, T], or keys that each query sees [B, 1, S or 1, T]; None if queries see
            all earlier positions.
        length: Number of queries S, the last ones of the keys.
        total: Number of keys T.
        config: PaddleNLP's configuration.
        dtype: Type of queries, keys and values.
    """
    seen_B1ST = paddle.tril(paddle.ones([1, 1, length, total], dtype="bool"), diagonal=total - length)
    position_BT = paddle.arange(total, dtype="int64").unsqueeze(0)
    if mask is not None and mask.ndim == 2:
        seen_B1ST = seen_B1ST & mask.astype("bool").unsqueeze([1, 2])
        tokens_BT = mask.astype("int64")
        position_BT = (tokens_BT.cumsum(axis=1) - 1) * tokens_BT
    elif mask is not None:
        seen_B1ST = seen_B1ST & mask.astype("bool")
    if config.use_flash_attention:
        return alibi_mask(seen_B1ST, position_BT, slopes_of(config), dtype)
    lowest = paddle.full([1], paddle.finfo(paddle.float32).min)
    bias_B1ST = paddle.where(seen_B1ST, paddle.zeros([1]), lowest)
    rows = bias_B1ST.shape[0]
    if rows == 1:
        return bias_B1ST[0, 0]
    heads = config.n_head // config.tensor_parallel_degree
    return bias_B1ST.expand([rows, heads, length, total]).reshape([rows * heads, length, total])


def attn_mask(
    self: Any, attention_mask: paddle.Tensor, input_shape: Any, past_key_values_length: int, num_heads: int
) -> paddle.Tensor:
    """Return the mask of the layers; for `BloomModel._prepare_attn_mask`.

    Args:
        self: The network without its head.
        attention_mask: [B, T], [B, S, T] or [B, 1, S, T] as in PaddleNLP; [B, 1, 1, S] marks the sample starts of
            packed rows; [1, 1, 1, 1] is the marker of whole rows.
        input_shape: B and S.
        past_key_values_length: Number of cached tokens.
        num_heads: Not used.
    """
    length = input_shape[1]
    mask = attention_mask.unsqueeze(1) if attention_mask.ndim == 3 else attention_mask
    if mask.ndim == 4 and mask.shape[2] == 1 < length:
        if mask.shape[3] > 1:
            return sample_ends_of_starts(mask[:, 0, 0])
        mask = None
    dtype = states_dtype(self.word_embeddings.weight)
    return layer_mask(mask, length, length + past_key_values_length, self.config, dtype)


def whole_rows_mask() -> paddle.Tensor:
    """Return the marker of whole rows, [1, 1, 1, 1], from which `attn_mask` builds the mask."""
    return paddle.ones([1, 1, 1, 1], dtype="bool")


def states_dtype(weight: paddle.Tensor) -> Any:
    """Return the type of a layer's queries, keys and values: that of AMP, otherwise that of the weights."""
    return paddle.get_autocast_dtype() if paddle.is_autocast_enabled() else weight.dtype


def bloom_attention(original: Any) -> Any:
    """Return BLOOM's attention with support for packed rows and for flash attention, by Paddle's fused kernel."""
    from paddlenlp.transformers.bloom import modeling

    @wraps(original)
    def attention(
        self: Any,
        hidden_states: Any,
        residual: Any,
        alibi: Any,
        attention_mask: Any,
        layer_past: Any = None,
        head_mask: Any = None,
        use_cache: bool = False,
        output_attentions: bool = False,
    ) -> Any:
        packed = is_sample_ends(attention_mask)
        if not packed and not self.config.use_flash_attention:
            rest = (layer_past, head_mask, use_cache, output_attentions)
            return original(self, hidden_states, residual, alibi, attention_mask, *rest)
        q_BSND, k_BTND, v_BTND = self._split_heads(self.query_key_value(hidden_states))
        if layer_past is not None:
            k_BTND, v_BTND = (paddle.concat(two, axis=1) for two in zip(layer_past, (k_BTND, v_BTND), strict=True))
        dropout = self.config.attention_dropout if self.training else 0.0
        with named_random_state("local_seed"):
            if packed:
                slopes = slopes_of(self.config)
                output = attend(q_BSND, k_BTND, v_BTND, attention_mask, slopes=slopes, dropout=dropout)
            else:
                output = fused_attention(q_BSND, k_BTND, v_BTND, attention_mask, dropout_p=dropout)
        output = self.dense(output.reshape([*output.shape[:2], -1]))
        present = (k_BTND, v_BTND) if use_cache else None
        return modeling.dropout_add(output, residual, self.hidden_dropout, self.training), present

    return attention
