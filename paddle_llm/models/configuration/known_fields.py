"""Classify the fields of a config.json: known to a family, harmless in all families, or refused.

A field is translated (`families/`), harmless (here), refused unless it has its neutral value (here and `families/`), or
unknown. Unknown fields are reported once, because transformers silently ignores them.
"""

from __future__ import annotations

from typing import Any

from paddle_llm.families import FAMILIES
from paddle_llm.families.config_keys import is_above_zero
from paddle_llm.models.weights.gptq.format import read_settings

# Fields of every configuration of transformers 4.55 and 5, of PaddleNLP's, and of widely used tools, that do not change
# the network.
HARMLESS = frozenset({
    "_name_or_path", "architectures", "auto_map", "model_type", "transformers_version", "paddlenlp_version", "torch_dtype", "dtype",
    "transformers_weights", "tokenizer_class", "finetuning_task", "task_specific_params", "id2label", "label2id", "num_labels",
    "problem_type", "prefix", "torchscript", "use_bfloat16", "tf_legacy_loss", "return_dict", "output_attentions",
    "output_hidden_states", "use_cache", "is_decoder", "chunk_size_feed_forward", "cross_attention_hidden_size", "initializer_range",
    "tie_encoder_decoder", "decoder_start_token_id", "bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "unk_token_id",
    "cls_token_id", "mask_token_id", "tie_word_embeddings", "quantization_config", "_attn_implementation", "attn_implementation",
    "_attn_implementation_autoset", "gradient_checkpointing", "pretraining_tp", "model_max_length", "use_flash_attn", "use_cache_quantization",
    "unsloth_version", "unsloth_fixed", "unsloth_training_completed", "_unwrapped_model",
    # defaults of generation in older folders
    "max_length", "min_length", "max_new_tokens", "do_sample", "early_stopping", "num_beams", "num_beam_groups", "diversity_penalty",
    "temperature", "top_k", "top_p", "typical_p", "repetition_penalty", "length_penalty", "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size", "bad_words_ids", "num_return_sequences", "output_scores", "return_dict_in_generate",
    "forced_bos_token_id", "forced_eos_token_id", "remove_invalid_values", "exponential_decay_length_penalty", "suppress_tokens",
    "begin_suppress_tokens",
    # the layout of a run, written by this project and by PaddleNLP
    "unpadded_vocab_size", "folder_sequence_length", "tensor_parallel_degree", "tensor_parallel_rank", "tensor_parallel_output",
    "pipeline_parallel_degree", "sequence_parallel", "virtual_pp_degree", "seq_length", "dpo_config", "fuse_attention_qkv",
    "fuse_attention_ffn", "use_fast_layer_norm",
})  # fmt: skip

# Fields of other networks that change the computation, with the values at which they have no effect. Networks of these
# families ignore them; a folder that sets one was trained with other code.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "pruned_heads": ({}, []),
    "attn_logit_softcapping": (None, 0, 0.0),
    "final_logit_softcapping": (None, 0, 0.0),
    "logit_softcapping": (None, 0, 0.0),
    "logits_soft_cap": (None, 0, 0.0),
    "query_pre_attn_scalar": (None,),
    "logit_scale": (None, 1, 1.0),
    "logits_scaling": (None, 1, 1.0),
    "embedding_multiplier": (None, 1, 1.0),
    "residual_multiplier": (None, 1, 1.0),
    "attention_multiplier": (None, 1, 1.0),
    "scale_emb": (None, 1, 1.0),
    "scale_depth": (None,),
    "dim_model_base": (None,),
    "use_qk_norm": (None, False),
    "qk_layernorm": (None, False),
    "use_parallel_residual": (None, False),
    "parallel_attn": (None, False),
    "clip_qkv": (None,),
    "num_experts": (None, 0, 1),
    "num_local_experts": (None, 0, 1),
    "n_routed_experts": (None, 0),
    "attention_chunk_size": (None,),
    "no_rope_layers": (None, []),
    "partial_rotary_factor": (None, 1, 1.0),
    "rotary_pct": (None, 1, 1.0),
    "rotary_dim": (None,),
    "scale_attention_softmax_in_fp32": (None, True),
    "use_mrope": (None, False),
    "alibi_bias_max": (None,),
    "softmax_scale": (None,),
}


# Numbers that a network computes with; with 0, null or text it would fail or compute NaN.
_ABOVE_ZERO = ("rope_theta", "rms_norm_eps", "layer_norm_epsilon", "layernorm_epsilon")


def refused_fields(raw: dict[str, Any]) -> list[str]:
    """Return the fields of a config.json that change the network and that no network of these families supports."""
    refused = [
        f"{key} {raw[key]!r} (only {' or '.join(map(repr, neutral[:2]))})"
        for key, neutral in _NEUTRAL.items()
        if key in raw and raw[key] not in neutral
    ]
    wrong = [key for key in _ABOVE_ZERO if key in raw and not is_above_zero(raw[key])]
    return refused + [f"{key} {raw[key]!r} (a number above 0 is expected)" for key in wrong]


def unknown_fields(family: str, raw: dict[str, Any], read: set[str]) -> list[str]:
    """Return the fields that are not known, sorted.

    Args:
        family: Name of the family.
        raw: Fields of config.json.
        read: Fields that PaddleNLP's configuration class reads.
    """
    known = HARMLESS | FAMILIES[family].config_json.known_fields | _NEUTRAL.keys() | read
    return sorted(key for key in raw if key not in known)


def quantization_of(raw: dict[str, Any]) -> str | None:
    """Return how a folder's weights are quantized; None if they are not, or in a way that is dequantized while they are read."""
    settings = read_settings(raw)
    if settings is not None:
        return settings if isinstance(settings, str) else None
    for key in ("quantization_config", "compression_config"):
        described = raw.get(key)
        if isinstance(described, dict):
            method = (
                described.get("quant_method") or described.get("quant_algo") or described.get("weight_quantize_algo")
            )
            if method is None and (described.get("load_in_4bit") or described.get("load_in_8bit")):
                method = "bitsandbytes"
            return f"{key}: {method or described}"
        if described is not None:
            return f"{key}: {described!r}"
    bits = raw.get("quantization_bit")
    return f"quantization_bit: {bits}" if bits else None
