"""Corrections that LLaMA and Qwen2 share: packed rows, masks with flash attention, operations on a CPU.

With flash attention whole rows need no mask, because the kernel's causal mask is enough. PaddleNLP 3.0.0b4 builds the
mask [B, 1, S, S] three times in every micro-batch, waits for the device to compare it with its upper triangle, and
drops it: 2 GB per tensor for one row of 32k tokens. The environment variable USE_CASUAL_MASK turns that off, but also
drops masks of padding.
"""

from __future__ import annotations

from functools import wraps
from typing import Any

import paddle

from paddle_llm.core.upstream import REPLACEMENTS, replace, replace_forward
from paddle_llm.models.patches.shared.attention_kernels import checked_functional
from paddle_llm.models.patches.shared.forward import WHY_PACKED_ROWS, with_packed_rows, with_packed_rows_in_pipeline
from paddle_llm.models.patches.shared.packed_rows import attend, is_sample_ends

_state = {"whole rows": False}


def apply_shared(modeling: Any, base: Any, network: Any, pipeline: Any, cpu_attention: Any) -> None:
    """Replace what LLaMA and Qwen2 have in common.

    Args:
        modeling: PaddleNLP's module of the family.
        base: Network without its head.
        network: Network in one process.
        pipeline: Network in stages.
        cpu_attention: Function that adds the faster attention on a CPU to an attention function.
    """
    # The attention for packed rows is the inner function, because the CPU's attention handles whole rows only.
    attention = cpu_attention(packed_attention(modeling.scaled_dot_product_attention))
    replace(modeling, "scaled_dot_product_attention", attention, f"{WHY_PACKED_ROWS} It is slow on a CPU.")
    replace(
        modeling,
        "is_casual_mask",
        is_square_and_causal(modeling.is_casual_mask),
        "It takes the mask of a single query for the causal mask, so padding is attended to.",
    )
    why = "With flash attention it builds and compares a causal mask that it then drops."
    replace(modeling, "get_use_casual_mask", lambda: _state["whole rows"], why)
    replace_forward(base, without_causal_mask(base.forward), why)
    name = "attn_mask_startend_row_indices"
    replace_forward(network, with_packed_rows(network.forward, name), WHY_PACKED_ROWS)
    prepare = with_packed_rows_in_pipeline(pipeline._prepare_pipeline_inputs_func, name)
    replace(pipeline, "_prepare_pipeline_inputs_func", prepare, WHY_PACKED_ROWS)
    _correct_fused_attention()


def _correct_fused_attention() -> None:
    """Correct the module that LLaMA and Qwen2 both call; once."""
    from paddlenlp.transformers.llama import fusion_ops

    if f"{fusion_ops.__name__}:F" not in REPLACEMENTS:
        replace(fusion_ops, "F", checked_functional(), "It requests the causal mask in addition to any other mask.")


def packed_attention(original: Any) -> Any:
    """Return an attention function that also supports packed rows.

    Without flash attention PaddleNLP ignores the sample ends. With flash attention it calls FlashMask on every GPU,
    even in 32 bits, where FlashMask does not work.
    """

    @wraps(original)
    def attention(
        query_states: paddle.Tensor,
        config: Any,
        key_states: paddle.Tensor,
        value_states: paddle.Tensor,
        attention_mask: Any,
        *others: Any,
        attn_mask_startend_row_indices: Any = None,
        sequence_parallel: bool = False,
        **named: Any,
    ) -> Any:
        sample_ends_BS = attention_mask if is_sample_ends(attention_mask) else attn_mask_startend_row_indices
        if sample_ends_BS is None:
            named["sequence_parallel"] = sequence_parallel
            return original(query_states, config, key_states, value_states, attention_mask, *others, **named)
        batch, length, heads, width = query_states.shape
        output = attend(query_states, key_states, value_states, sample_ends_BS)
        rows = [batch * length] if sequence_parallel else [batch, length]
        return output.reshape([*rows, heads * width])

    return attention


def is_square_and_causal(original: Any) -> Any:
    """Return the check whether a mask equals the kernel's causal one.

    PaddleNLP takes the mask [B, 1, 1, T] of one token after a cache for the causal mask, so padding is attended to.
    """

    @wraps(original)
    def is_causal(attention_mask: paddle.Tensor) -> bool:
        return attention_mask.shape[-2] == attention_mask.shape[-1] and original(attention_mask)

    return is_causal


def without_causal_mask(forward: Any) -> Any:
    """Return a base network's `forward` that builds no mask if flash attention processes whole rows."""

    @wraps(forward)
    def replacement(
        self: Any,
        input_ids: Any = None,
        position_ids: Any = None,
        attention_mask: Any = None,
        *args: Any,
        **inputs: Any,
    ) -> Any:
        cached = inputs.get("past_key_values") is not None
        before = _state["whole rows"]
        _state["whole rows"] = bool(self.config.use_flash_attention and attention_mask is None and not cached)
        try:
            return forward(self, input_ids, position_ids, attention_mask, *args, **inputs)
        finally:
            _state["whole rows"] = before

    return replacement
