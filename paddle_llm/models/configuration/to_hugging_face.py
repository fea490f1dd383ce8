"""From PaddleNLP's configuration of a model to Hugging Face's config.json: the way back from `configure.py`.

LLaMA, Qwen2, BLOOM and OPT as transformers spells them (4.55, which 5.x reads too); ChatGLM and GLM as their authors
published them, whose network is code that stands in their own repositories (`auto_map`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from paddle_llm.core.errors import UserError
from paddle_llm.models.weights.names import is_tied

_CHATGLM_CODE = {
    "AutoConfig": "configuration_chatglm.ChatGLMConfig",
    "AutoModel": "modeling_chatglm.ChatGLMForConditionalGeneration",
    "AutoModelForCausalLM": "modeling_chatglm.ChatGLMForConditionalGeneration",
    "AutoModelForSeq2SeqLM": "modeling_chatglm.ChatGLMForConditionalGeneration",
}
_GLM_CODE = {
    "AutoConfig": "configuration_glm.GLMConfig",
    "AutoModel": "modeling_glm.GLMModel",
    "AutoModelForSeq2SeqLM": "modeling_glm.GLMForConditionalGeneration",
    "AutoModelForMultipleChoice": "modeling_glm.GLMForMultipleChoice",
}
# Families whose network is code of its authors: where it was published.
REMOTE_CODE = {
    "chatglm": "THUDM/chatglm-6b",
    "chatglm_v2": "THUDM/chatglm2-6b or THUDM/chatglm3-6b",
    "glm": "THUDM/glm-10b",
}
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


def hugging_face_config(family: str, config: Any, *, dtype: str) -> dict[str, Any]:
    """What config.json says beside weights under Hugging Face's names.

    A value of None is kept: without the key, transformers would take its class's default (LLaMA: bos_token_id 1).

    Args:
        config: PaddleNLP's, plain (`vocab.plain_config`).
        dtype: of the weights: "float32", "bfloat16" or "float16".

    Raises:
        UserError: the network does what Hugging Face's cannot.
    """
    if getattr(config, "use_long_sequence_strategies", False):
        raise UserError("use_long_sequence_strategies is PaddleNLP's own: Hugging Face's networks have no such thing")
    values = _WRITERS[family](config)
    values |= {name: in_vocabulary(getattr(config, name, None), config.vocab_size) for name in _TOKENS}
    return values | {"tie_word_embeddings": is_tied(family, config), "torch_dtype": dtype, "use_cache": True}


def in_vocabulary(ids: Any, size: int) -> Any:
    """Without what no token has: PaddleNLP fills in its classes' defaults, those of the published vocabularies."""
    if isinstance(ids, list):
        kept = [number for number in ids if 0 <= number < size]
        return kept or None
    return ids if ids is not None and 0 <= ids < size else None


def _same(config: Any, *names: str) -> dict[str, Any]:
    return {name: getattr(config, name) for name in names}


def _decoder(config: Any, architecture: str, model_type: str) -> dict[str, Any]:
    """What LLaMA and Qwen2 have in common."""
    if getattr(config, "alibi", False):
        raise UserError("alibi: Hugging Face's LLaMA has rotary positions only")
    return {
        "architectures": [architecture],
        "model_type": model_type,
        "hidden_act": "silu",
        "attention_dropout": 0.0,
        **_same(config, "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
        **_same(config, "num_key_value_heads", "max_position_embeddings", "initializer_range", "rms_norm_eps"),
        **_rope(config),
    }


def _llama(config: Any) -> dict[str, Any]:
    return {
        **_decoder(config, "LlamaForCausalLM", "llama"),
        "head_dim": config.hidden_size // config.num_attention_heads,
        "attention_bias": False,
        "mlp_bias": False,
        "pretraining_tp": 1,
    }


def _qwen2(config: Any) -> dict[str, Any]:
    return {
        **_decoder(config, "Qwen2ForCausalLM", "qwen2"),
        "use_sliding_window": False,
        **_same(config, "sliding_window", "max_window_layers"),
    }


def _rope(config: Any) -> dict[str, Any]:
    """PaddleNLP's keys -> rope_theta and rope_scaling."""
    theta, factor = config.rope_theta, config.rope_scaling_factor
    scaling = getattr(config, "rope_scaling", None)
    if scaling:
        return {"rope_theta": theta, "rope_scaling": dict(scaling)}
    kind = config.rope_scaling_type
    if kind == "ntk":  # a larger base, which can be written as such
        width = config.hidden_size // config.num_attention_heads
        longest = int(config.max_position_embeddings * factor)
        return {"rope_theta": theta * factor ** (width / (width - 2)), "max_position_embeddings": longest}
    if kind is None:
        return {"rope_theta": theta}
    theirs = {"linear": "linear", "dynamic_ntk": "dynamic"}.get(kind)
    if theirs is None:
        raise UserError(f"rope_scaling_type {kind!r}: Hugging Face's LLaMA cannot be told of it")
    return {"rope_theta": theta, "rope_scaling": {"rope_type": theirs, "factor": factor}}


def _bloom(config: Any) -> dict[str, Any]:
    return {
        "architectures": ["BloomForCausalLM"],
        "model_type": "bloom",
        **_same(config, "vocab_size", "hidden_size", "n_layer", "n_head", "layer_norm_epsilon", "initializer_range"),
        **_same(config, "apply_residual_connection_post_layernorm", "hidden_dropout", "attention_dropout"),
        "pretraining_tp": 1,
        "slow_but_exact": False,
    }


def _opt(config: Any) -> dict[str, Any]:
    return {
        "architectures": ["OPTForCausalLM"],
        "model_type": "opt",
        **_same(config, "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"),
        **_same(config, "max_position_embeddings", "word_embed_proj_dim"),
        "ffn_dim": config.intermediate_size,
        "do_layer_norm_before": config.normalize_before,
        "_remove_final_layer_norm": False,
        "activation_function": "relu",
        "dropout": config.hidden_dropout_prob,
        "attention_dropout": config.attention_probs_dropout_prob,
        "layerdrop": 0.0,
        "init_std": config.initializer_range,
        "enable_bias": True,
        "layer_norm_elementwise_affine": True,
    }


def _chatglm(config: Any) -> dict[str, Any]:
    return {
        "architectures": ["ChatGLMModel"],
        "auto_map": _CHATGLM_CODE,
        "model_type": "chatglm",
        "num_layers": config.num_hidden_layers,
        **_same(config, "vocab_size", "hidden_size", "inner_hidden_size", "num_attention_heads", "layernorm_epsilon"),
        **_same(config, "max_sequence_length", "position_encoding_2d", "mask_token_id", "gmask_token_id"),
    }


def _chatglm_v2(config: Any) -> dict[str, Any]:
    return {
        "architectures": ["ChatGLMModel"],
        "auto_map": _CHATGLM_CODE,
        "model_type": "chatglm",
        "num_layers": config.num_hidden_layers,
        "padded_vocab_size": config.vocab_size,
        "seq_length": config.max_sequence_length,
        "multi_query_attention": True,
        "original_rope": True,
        **_same(
            config, "hidden_size", "ffn_hidden_size", "kv_channels", "num_attention_heads", "multi_query_group_num"
        ),
        **_same(config, "hidden_dropout", "attention_dropout", "layernorm_epsilon", "rmsnorm", "post_layer_norm"),
        **_same(config, "apply_residual_connection_post_layernorm", "add_bias_linear", "add_qkv_bias"),
        **_same(config, "bias_dropout_fusion", "apply_query_key_layer_scaling", "attention_softmax_in_fp32"),
        **_same(config, "fp32_residual_connection"),
    }


def _glm(config: Any) -> dict[str, Any]:
    return {
        "architectures": ["GLMModel"],
        "auto_map": _GLM_CODE,
        "model_type": "glm",
        "output_predict": True,
        "relative_encoding": False,
        **_same(config, "vocab_size", "hidden_size", "num_layers", "num_attention_heads", "max_sequence_length"),
        **_same(config, "embedding_dropout_prob", "attention_dropout_prob", "output_dropout_prob"),
        **_same(config, "block_position_encoding", "parallel_output", "pool_token", "spell_func", "attention_scale"),
        **_same(config, "layernorm_epsilon", "initializer_range"),
    }


_WRITERS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "llama": _llama,
    "qwen2": _qwen2,
    "chatglm": _chatglm,
    "chatglm_v2": _chatglm_v2,
    "bloom": _bloom,
    "opt": _opt,
    "glm": _glm,
}
