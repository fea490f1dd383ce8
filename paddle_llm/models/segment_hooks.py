"""Packed rows in PaddleNLP's networks: from a batch's `segment_lengths` to the attention of each family (see `segments.py`)."""

from __future__ import annotations

from functools import wraps
from typing import Any

import paddle

from paddle_llm.models.segments import attend, is_ends, segment_ends, segment_positions


def install_segments() -> None:
    """Replace methods of PaddleNLP's classes. Called once, before a network is built."""
    from paddlenlp.transformers.llama import modeling as llama
    from paddlenlp.transformers.llama import modeling_pp as llama_pipeline
    from paddlenlp.transformers.qwen2 import modeling as qwen2
    from paddlenlp.transformers.qwen2 import modeling_pp as qwen2_pipeline

    for modeling, network in ((llama, llama.LlamaForCausalLM), (qwen2, qwen2.Qwen2ForCausalLM)):
        modeling.scaled_dot_product_attention = _rotary_attention(modeling.scaled_dot_product_attention)
        _take_segments(network)
    for pipeline in (llama_pipeline.LlamaForCausalLMPipe, qwen2_pipeline.Qwen2ForCausalLMPipe):
        _take_segments_in_stages(pipeline)


def _rotary_attention(original: Any) -> Any:
    """LLaMA's and Qwen2's attention, which without flash attention does not look at where samples end."""

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
        ends = attention_mask if is_ends(attention_mask) else attn_mask_startend_row_indices
        if ends is None or config.use_flash_attention:
            named.update(attn_mask_startend_row_indices=ends, sequence_parallel=sequence_parallel)
            mask = None if is_ends(attention_mask) else attention_mask
            return original(query_states, config, key_states, value_states, mask, *others, **named)
        batch, length, heads, width = query_states.shape
        output = attend(query_states, key_states, value_states, ends)
        rows = [batch * length] if sequence_parallel else [batch, length]
        return output.reshape([*rows, heads * width])

    return attention


def _take_segments(network: Any) -> None:
    """Let `forward` of a network in one process take `segment_lengths`."""
    forward = network.forward

    @wraps(forward)
    def with_segments(self: Any, *args: Any, segment_lengths: Any = None, **inputs: Any) -> Any:
        if segment_lengths is not None:
            length = (args[0] if args else inputs["input_ids"]).shape[1]
            inputs.update(_described(segment_lengths, length, inputs.get("position_ids")))
        return forward(self, *args, **inputs)

    network.forward = with_segments


def _take_segments_in_stages(pipeline: Any) -> None:
    prepare = pipeline._prepare_pipeline_inputs_func.__func__

    def with_segments(cls: Any, inputs: Any) -> Any:
        for batch in [inputs] if isinstance(inputs, dict) else inputs:
            lengths = batch.pop("segment_lengths", None)
            if lengths is not None:
                batch.update(_described(lengths, batch["input_ids"].shape[1], batch.get("position_ids")))
        return prepare(cls, inputs)

    pipeline._prepare_pipeline_inputs_func = classmethod(with_segments)


def _described(segment_lengths: paddle.Tensor, length: int, position_ids: Any) -> dict[str, paddle.Tensor]:
    if position_ids is None:
        position_ids = segment_positions(segment_lengths, length)
    return {"attn_mask_startend_row_indices": segment_ends(segment_lengths, length), "position_ids": position_ids}
