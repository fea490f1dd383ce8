"""Packed rows in PaddleNLP's networks: from a batch's `segment_lengths` to the attention of each family (see `segments.py`)."""

from __future__ import annotations

from functools import wraps
from typing import Any

import paddle

from paddle_llm.models.patches.attention_kernels import checked_functional
from paddle_llm.models.patches.bloom_attention import attn_mask, bloom_attention, whole_rows_mask
from paddle_llm.models.patches.causal_masks import leave_out_causal_masks
from paddle_llm.models.patches.dropout_rng import named_random_state
from paddle_llm.models.patches.replace_forward import replace_forward
from paddle_llm.models.patches.segments import (
    attend,
    ends_of,
    first_places,
    is_ends,
    positions_of,
    segment_ends,
    segment_positions,
)


def install_segments() -> None:
    """Replace methods of PaddleNLP's classes. Called once, before a network is built."""
    from paddlenlp.transformers.llama import fusion_ops
    from paddlenlp.transformers.llama import modeling as llama
    from paddlenlp.transformers.llama import modeling_pp as llama_pipeline
    from paddlenlp.transformers.qwen2 import modeling as qwen2
    from paddlenlp.transformers.qwen2 import modeling_pp as qwen2_pipeline

    # PaddleNLP 3.0.0b4 asks for a causal mask beside every other mask (fusion_flash_attention).
    fusion_ops.F = checked_functional()
    for modeling, base, network in (
        (llama, llama.LlamaModel, llama.LlamaForCausalLM),
        (qwen2, qwen2.Qwen2Model, qwen2.Qwen2ForCausalLM),
    ):
        modeling.scaled_dot_product_attention = _rotary_attention(modeling.scaled_dot_product_attention)
        modeling.is_casual_mask = _is_square_and_causal(modeling.is_casual_mask)
        leave_out_causal_masks(modeling, base)
        _take_segments(network, "attn_mask_startend_row_indices")
    for pipeline in (llama_pipeline.LlamaForCausalLMPipe, qwen2_pipeline.Qwen2ForCausalLMPipe):
        _take_segments_in_stages(pipeline)
    _install_in_chatglm2()
    _install_in_bloom()
    _install_in_opt()


# ---- LLaMA, Qwen2 ---------------------------------------------------------------------------------------------------


def _rotary_attention(original: Any) -> Any:
    """LLaMA's and Qwen2's attention, by sample where the rows are packed.

    PaddleNLP ignores where samples end without flash attention, and with it calls FlashMask on every card and in 32 bits.
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
        ends = attention_mask if is_ends(attention_mask) else attn_mask_startend_row_indices
        if ends is None:
            named["sequence_parallel"] = sequence_parallel
            return original(query_states, config, key_states, value_states, attention_mask, *others, **named)
        batch, length, heads, width = query_states.shape
        output = attend(query_states, key_states, value_states, ends)
        rows = [batch * length] if sequence_parallel else [batch, length]
        return output.reshape([*rows, heads * width])

    return attention


def _is_square_and_causal(original: Any) -> Any:
    """Whether a mask may be dropped for the kernel's causal one.

    PaddleNLP 3.0.0b4 takes the mask of one token behind a cache, a row [B, 1, 1, T], for causal: padding is attended to.
    """

    @wraps(original)
    def is_causal(attention_mask: paddle.Tensor) -> bool:
        return attention_mask.shape[-2] == attention_mask.shape[-1] and original(attention_mask)

    return is_causal


def _take_segments(network: Any, name: str) -> None:
    """Let `forward` of a network in one process take `segment_lengths`; `name`: of its argument that is given `ends`."""
    forward = network.forward

    @wraps(forward)
    def with_segments(self: Any, *args: Any, segment_lengths: Any = None, **inputs: Any) -> Any:
        if segment_lengths is not None:
            length = (args[0] if args else inputs["input_ids"]).shape[1]
            inputs.update(_described(segment_lengths, length, inputs.get("position_ids"), name))
        return forward(self, *args, **inputs)

    replace_forward(network, with_segments)


def _take_segments_in_stages(pipeline: Any) -> None:
    prepare = pipeline._prepare_pipeline_inputs_func.__func__

    def with_segments(cls: Any, inputs: Any) -> Any:
        describe_batches(inputs, "attn_mask_startend_row_indices")
        return prepare(cls, inputs)

    pipeline._prepare_pipeline_inputs_func = classmethod(with_segments)


def describe_batches(inputs: Any, name: str) -> None:
    """Put `ends` in the place of `segment_lengths` in a pipeline's micro batches, one dictionary or several."""
    for batch in [inputs] if isinstance(inputs, dict) else inputs:
        lengths = batch.pop("segment_lengths", None)
        if lengths is not None:
            batch.update(_described(lengths, batch["input_ids"].shape[1], batch.get("position_ids"), name))


def stage_inputs(inputs: Any) -> list[Any]:
    """What Paddle's pipeline wants: the first stage's inputs and the last one's, of each micro batch where there are several.

    (input_ids, mask, position_ids), those that there are none of as None.
    """
    describe_batches(inputs, "attention_mask")
    if not isinstance(inputs, dict):
        inputs = {name: [batch[name] for batch in inputs] for name in inputs[0]}
    first = [inputs.get(name) for name in ("input_ids", "attention_mask", "position_ids")]
    return [first[0] if first[1:] == [None, None] else tuple(first), inputs["labels"]]


def _described(lengths: paddle.Tensor, length: int, position_ids: Any, name: str) -> dict[str, paddle.Tensor]:
    if position_ids is None:
        position_ids = segment_positions(lengths, length)
    return {name: segment_ends(lengths, length), "position_ids": position_ids}


# ---- ChatGLM2/3 -----------------------------------------------------------------------------------------------------


def _install_in_chatglm2() -> None:
    """Its encoder turns a mask of booleans into numbers that are added. Where samples begin goes that way, as [B, 1, 1, S].

    Whole rows need no mask: [1, 1, 1, 1] stands for the causal one (`is_causal_marker`). PaddleNLP 3.0.0b4 has no causal
    flash attention here, and in a pipeline it sends the mask [B, 1, S, S] to every stage and copies it in every layer.
    """
    from paddlenlp.transformers.chatglm_v2 import modeling, modeling_pp

    get_masks = modeling.ChatGLMv2PretrainedModel.get_masks

    def masks(self: Any, input_ids: Any, past_key_values: Any, padding_mask: Any = None) -> paddle.Tensor:
        if is_ends(padding_mask):
            return first_places(padding_mask).unsqueeze([1, 2])
        if padding_mask is None and not past_key_values and self.config.use_flash_attention:
            return paddle.ones([1, 1, 1, 1], dtype="bool")
        return get_masks(self, input_ids, past_key_values, padding_mask=padding_mask)

    modeling.ChatGLMv2PretrainedModel.get_masks = masks
    modeling_pp.ChatGLMv2ForCausalLMPipe.get_masks = masks
    modeling_pp.ChatGLMv2ForCausalLMPipe._prepare_pipeline_inputs_func = staticmethod(stage_inputs)
    modeling.CoreAttention.forward = chatglm2_attention(_with_causal_mask(modeling.CoreAttention.forward))
    _take_segments(modeling.ChatGLMv2ForCausalLM, "attention_mask")


def is_causal_marker(mask: paddle.Tensor, length: int) -> bool:
    """Whether a mask of ChatGLM2's layers stands for the causal one of `length` queries."""
    return mask.shape[-2:] == [1, 1] and length > 1


def _with_causal_mask(original: Any) -> Any:
    """ChatGLM2's plain attention, which makes the causal mask where there is only its marker."""

    @wraps(original)
    def attention(self: Any, query: paddle.Tensor, key: paddle.Tensor, value: paddle.Tensor, mask: Any) -> Any:
        length = query.shape[0]
        if is_causal_marker(mask, length):
            lowest = paddle.full([1, 1, length, length], paddle.finfo(mask.dtype).min, mask.dtype)
            mask = paddle.triu(lowest, diagonal=1)
        return original(self, query, key, value, mask)

    return attention


def chatglm2_attention(original: Any) -> Any:
    """ChatGLM2's attention (states [S, B, N, D]), by sample where the mask says where samples begin."""

    @wraps(original)
    def attention(self: Any, query: paddle.Tensor, key: paddle.Tensor, value: paddle.Tensor, mask: Any) -> Any:
        length, batch = query.shape[:2]
        if mask.shape[2] != 1 or length == 1 or key.shape[0] != length or is_causal_marker(mask, length):
            return original(self, query, key, value, mask)
        states = [state.transpose([1, 0, 2, 3]) for state in (query, key, value)]
        dropout = self.config.attention_dropout if self.training else 0.0
        with named_random_state("local_seed"):
            output_BSND = attend(*states, ends_of(mask[:, 0, 0] == 0), dropout=dropout)
        rows = [length * batch] if self.config.sequence_parallel else [length, batch]
        return output_BSND.transpose([1, 0, 2, 3]).reshape([*rows, -1])

    return attention


# ---- BLOOM ----------------------------------------------------------------------------------------------------------


def _install_in_bloom() -> None:
    """Its network takes booleans for a mask: where samples begin, as [B, 1, 1, S], of which its layers are given `ends`."""
    from paddlenlp.transformers.bloom import modeling

    from paddle_llm.models.patches import bloom_pipeline

    forward = modeling.BloomForCausalLM.forward

    @wraps(forward)
    def with_begins(self: Any, *args: Any, **inputs: Any) -> Any:
        mask = inputs.get("attention_mask")
        if is_ends(mask):
            inputs["attention_mask"] = first_places(mask).unsqueeze([1, 2])
        elif mask is None and len(args) <= 1 and all(inputs.get(name) is None for name in ("cache", "past_key_values")):
            inputs["attention_mask"] = whole_rows_mask()
        return forward(self, *args, **inputs)

    modeling.BloomModel._prepare_attn_mask = wraps(modeling.BloomModel._prepare_attn_mask)(attn_mask)
    modeling.BloomAttention.forward = bloom_attention(modeling.BloomAttention.forward)
    replace_forward(modeling.BloomForCausalLM, with_begins)
    bloom_pipeline.BloomForCausalLMPipe._prepare_pipeline_inputs_func = staticmethod(stage_inputs)
    _take_segments(modeling.BloomForCausalLM, "attention_mask")


# ---- OPT ------------------------------------------------------------------------------------------------------------


def _install_in_opt() -> None:
    from paddlenlp.transformers.opt import modeling

    table, prepare = modeling.OPTLearnedPositionEmbedding.forward, modeling.OPTModel._prepare_decoder_attention_mask
    attend_all = modeling.MultiHeadAttention.forward

    @wraps(table)
    def positions(self: Any, attention_mask: paddle.Tensor, past_key_values_length: int = 0) -> paddle.Tensor:
        if is_ends(attention_mask):
            return paddle.nn.Embedding.forward(self, positions_of(attention_mask) + self.offset)
        return table(self, attention_mask, past_key_values_length)

    @wraps(prepare)
    def decoder_mask(self: Any, attention_mask: paddle.Tensor, *args: Any, **others: Any) -> paddle.Tensor:
        return attention_mask if is_ends(attention_mask) else prepare(self, attention_mask, *args, **others)

    @wraps(attend_all)
    def attention(self: Any, query: Any, key: Any, value: Any, attn_mask: Any = None, *args: Any, **others: Any) -> Any:
        if not is_ends(attn_mask):
            return attend_all(self, query, key, value, attn_mask, *args, **others)
        batch, length = query.shape[:2]
        projections = (self.q_proj, self.k_proj, self.v_proj)
        states = [linear(query).reshape([batch, length, self.num_heads, self.head_dim]) for linear in projections]
        with named_random_state("local_seed"):
            output = attend(*states, attn_mask, dropout=self.dropout if self.training else 0.0)
        return self.out_proj(output.reshape([batch, length, -1])), None

    modeling.OPTLearnedPositionEmbedding.forward = positions
    modeling.OPTModel._prepare_decoder_attention_mask = decoder_mask
    modeling.MultiHeadAttention.forward = attention
    _take_segments(modeling.OPTForCausalLM, "attention_mask")
