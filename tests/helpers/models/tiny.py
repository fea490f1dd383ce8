"""Tiny model folders for tests: only a config.json, from which random weights are built.

Each writer takes overrides of config.json's keys; an override of None removes the key.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def write_llama(folder: str | Path, **overrides: Any) -> Path:
    """Write LLaMA with the keys of Hugging Face (transformers 4) and PaddleNLP."""
    return _write(
        folder,
        {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": 128,
            "hidden_size": 64,
            "intermediate_size": 172,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "max_position_embeddings": 128,
            "initializer_range": 0.02,
            "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0,
            "hidden_act": "silu",
            "tie_word_embeddings": False,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
        },
        overrides,
    )


def write_llama_hf5(folder: str | Path, rope_parameters: dict[str, Any] | None = None, **overrides: Any) -> Path:
    """Write LLaMA with the keys of transformers 5: RoPE under `rope_parameters`, explicit head_dim."""
    rope = rope_parameters or {"rope_type": "default", "rope_theta": 10000.0}
    return write_llama(folder, rope_theta=None, head_dim=16, **{"rope_parameters": rope, **overrides})


def write_chatglm(folder: str | Path, **overrides: Any) -> Path:
    """Write ChatGLM-6B (the first version: prefix mask and 2D positions) with Hugging Face's keys."""
    return _write(
        folder,
        {
            "architectures": ["ChatGLMModel"],
            "model_type": "chatglm",
            "vocab_size": 128,
            "hidden_size": 64,
            "inner_hidden_size": 256,
            "num_layers": 4,
            "num_attention_heads": 4,
            "layernorm_epsilon": 1e-5,
            "max_sequence_length": 128,
            "position_encoding_2d": True,
            "pad_token_id": 3,
            "mask_token_id": 124,
            "gmask_token_id": 125,
            "bos_token_id": 126,
            "eos_token_id": 127,
        },
        overrides,
    )


def write_chatglm2(folder: str | Path, **overrides: Any) -> Path:
    """Write ChatGLM2/3 with Hugging Face's keys."""
    return _write(
        folder,
        {
            "architectures": ["ChatGLMModel"],
            "model_type": "chatglm",
            "padded_vocab_size": 128,
            "hidden_size": 64,
            "ffn_hidden_size": 96,
            "kv_channels": 16,
            "num_layers": 4,
            "num_attention_heads": 4,
            "multi_query_attention": True,
            "multi_query_group_num": 2,
            "seq_length": 128,
            "layernorm_epsilon": 1e-5,
            "rmsnorm": True,
            "post_layer_norm": True,
            "add_bias_linear": False,
            "add_qkv_bias": True,
            "hidden_dropout": 0.0,
            "attention_dropout": 0.0,
            "eos_token_id": 2,
            "pad_token_id": 0,
        },
        overrides,
    )


def write_bloom(folder: str | Path, **overrides: Any) -> Path:
    """Write BLOOM with Hugging Face's keys."""
    return _write(
        folder,
        {
            "architectures": ["BloomForCausalLM"],
            "model_type": "bloom",
            "vocab_size": 128,
            "hidden_size": 64,
            "n_layer": 4,
            "n_head": 4,
            "layer_norm_epsilon": 1e-5,
            "initializer_range": 0.02,
            "hidden_dropout": 0.0,
            "attention_dropout": 0.0,
            "apply_residual_connection_post_layernorm": False,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 3,
        },
        overrides,
    )


def write_opt(folder: str | Path, **overrides: Any) -> Path:
    """Write OPT with Hugging Face's keys."""
    return _write(
        folder,
        {
            "architectures": ["OPTForCausalLM"],
            "model_type": "opt",
            "vocab_size": 128,
            "hidden_size": 64,
            "ffn_dim": 160,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "max_position_embeddings": 128,
            "word_embed_proj_dim": 64,
            "do_layer_norm_before": True,
            "activation_function": "relu",
            "dropout": 0.0,
            "attention_dropout": 0.0,
            "init_std": 0.02,
            "tie_word_embeddings": True,
            "bos_token_id": 2,
            "eos_token_id": 2,
            "pad_token_id": 1,
        },
        overrides,
    )


def write_glm(folder: str | Path, **overrides: Any) -> Path:
    """Write GLM (2022) with the keys of its authors and PaddleNLP."""
    return _write(
        folder,
        {
            "architectures": ["GLMModel"],
            "model_type": "glm",
            "vocab_size": 128,
            "hidden_size": 64,
            "num_layers": 4,
            "num_attention_heads": 4,
            "max_sequence_length": 128,
            "block_position_encoding": True,
            "embedding_dropout_prob": 0.0,
            "attention_dropout_prob": 0.0,
            "output_dropout_prob": 0.0,
            "layernorm_epsilon": 1e-5,
            "initializer_range": 0.02,
            "pad_token_id": 0,
            "eos_token_id": 2,
        },
        overrides,
    )


def write_qwen2(folder: str | Path, **overrides: Any) -> Path:
    """Write Qwen2 with Hugging Face's keys."""
    return write_llama(
        folder,
        **{"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "use_sliding_window": False, **overrides},
    )


def write_mistral(folder: str | Path, **overrides: Any) -> Path:
    """Write Mistral in Hugging Face's names, with fewer key-value heads and a window shorter than the tests' sequences."""
    names = {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": 10}
    return write_llama(folder, **{**names, "num_key_value_heads": 2, "pad_token_id": None, **overrides})


def _write(folder: str | Path, config: dict[str, Any], overrides: dict[str, Any]) -> Path:
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = {key: value for key, value in {**config, **overrides}.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return folder
