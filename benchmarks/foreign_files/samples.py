"""Valid files that the variants begin with: configurations, tiny weights, tokenizers, templates, adapters, rows."""

from __future__ import annotations

import functools
import io
import json
import pydoc_data.topics
from typing import Any

import numpy as np

_LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 64, "max_position_embeddings": 64, "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0, "rope_scaling": None, "tie_word_embeddings": False, "hidden_act": "silu", "attention_bias": False,
    "torch_dtype": "float32", "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None, "use_cache": True, "initializer_range": 0.02,
}  # fmt: skip
_LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16
}  # fmt: skip
CONFIGS: tuple[dict[str, Any], ...] = (
    _LLAMA,
    {**_LLAMA, "rope_scaling": _LLAMA3, "eos_token_id": [2, 5, 7]},
    {**_LLAMA, "rope_scaling": {"type": "linear", "factor": 2.0}, "head_dim": 8},
    {**_LLAMA, "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "use_sliding_window": False, "sliding_window": 32768},
    {
        "architectures": ["BloomForCausalLM"], "model_type": "bloom", "hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": 64,
        "layer_norm_epsilon": 1e-5, "apply_residual_connection_post_layernorm": False, "slow_but_exact": False,
    },
    {
        "architectures": ["OPTForCausalLM"], "model_type": "opt", "hidden_size": 32, "num_hidden_layers": 2, "ffn_dim": 48,
        "num_attention_heads": 4, "vocab_size": 64, "max_position_embeddings": 64, "word_embed_proj_dim": 32, "do_layer_norm_before": True,
        "activation_function": "relu", "dropout": 0.1,
    },
    {
        "architectures": ["ChatGLMModel"], "model_type": "chatglm", "hidden_size": 32, "inner_hidden_size": 128, "num_layers": 2,
        "num_attention_heads": 4, "vocab_size": 64, "max_sequence_length": 64, "position_encoding_2d": True, "layernorm_epsilon": 1e-5,
    },
    {
        "architectures": ["ChatGLMModel"], "model_type": "chatglm", "hidden_size": 32, "ffn_hidden_size": 48, "num_layers": 2,
        "num_attention_heads": 4, "padded_vocab_size": 64, "seq_length": 64, "multi_query_attention": True, "multi_query_group_num": 2,
        "kv_channels": 8, "rmsnorm": True, "add_qkv_bias": True, "rope_ratio": 1,
    },
    {
        "architectures": ["GLMModel"], "model_type": "glm", "hidden_size": 32, "num_layers": 2, "num_attention_heads": 4, "vocab_size": 64,
        "max_sequence_length": 64, "block_position_encoding": True,
    },
)  # fmt: skip
GENERATION = {
    "bos_token_id": 1, "eos_token_id": [2, 7], "pad_token_id": 0, "do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20,
    "repetition_penalty": 1.05, "transformers_version": "4.55.4", "max_length": 2048,
}  # fmt: skip
ADAPTER = {
    "alpha_pattern": {}, "auto_mapping": None, "base_model_name_or_path": "nobody/base", "bias": "none", "corda_config": None,
    "eva_config": None, "exclude_modules": None, "fan_in_fan_out": False, "inference_mode": True, "init_lora_weights": True,
    "layer_replication": None, "layers_pattern": None, "layers_to_transform": None, "loftq_config": {}, "lora_alpha": 16,
    "lora_bias": False, "lora_dropout": 0.05, "megatron_config": None, "megatron_core": "megatron.core", "modules_to_save": None,
    "peft_type": "LORA", "qalora_group_size": 16, "r": 4, "rank_pattern": {}, "revision": None, "target_modules": ["q_proj", "v_proj"],
    "target_parameters": None, "task_type": "CAUSAL_LM", "trainable_token_indices": None, "use_dora": False, "use_qalora": False,
    "use_rslora": False,
}  # fmt: skip
OWN_ADAPTER = {
    "method": {"name": "lora", "rank": 4, "alpha": 16.0, "dropout": 0.0, "targets": ["q_proj"], "rslora": False},
    "model": {"family": "llama", "hidden": 32, "layers": 2, "vocab": 64},
    "base": "nobody/base",
}
RUN = {
    "model_name_or_path": "model", "tokenizer_name_or_path": "model", "input_dir": "data", "output_dir": "output", "split": "949,50,1",
    "max_seq_length": 64, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "tensor_parallel_degree": 1,
    "learning_rate": 1e-4, "max_steps": 100, "warmup_steps": 10, "save_steps": 50, "do_train": True, "do_eval": False, "bf16": True,
    "continue_training": False, "use_flash_attention": False, "recompute": False, "seed": 42, "device": "cpu",
}  # fmt: skip
FINETUNE = {
    "model_name_or_path": "model", "dataset_name_or_path": "rows.jsonl", "output_dir": "output", "max_length": 64, "src_length": 32,
    "per_device_train_batch_size": 2, "num_train_epochs": 1, "learning_rate": 3e-4, "warmup_ratio": 0.03, "lora": True, "lora_rank": 8,
    "lora_alpha": 16, "chat_template": "chatml", "do_train": True, "zero_padding": False, "device": "cpu",
}  # fmt: skip
ROWS: tuple[list[dict[str, Any]], ...] = (
    [{"src": "What is 2 + 2?", "tgt": "4"}, {"src": ["a", "b"], "tgt": ["c", "d"]}],
    [{"instruction": "Translate", "input": "你好", "output": "hello"}, {"instruction": "Sum", "input": "", "output": "3"}],
    [{"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}] * 2,
    [{"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "system": "s"}] * 2,
    [{"prompt": "q", "completion": "a"}, {"prompt": "q", "completion": "b"}],
    [{"question": "q", "answer": "a"}],
    [
        {
            "messages": [
                {"role": "user", "content": "weather?"},
                {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": {"name": "w", "arguments": "{}"}}]},
                {"role": "tool", "content": "sunny", "name": "w"},
                {"role": "assistant", "content": "Sunny.", "reasoning_content": "look", "weight": 1},
            ],
            "tools": [{"type": "function", "function": {"name": "w", "parameters": {}}}],
        }
    ],
    [{"prompt": "q", "chosen": "a", "rejected": "b"}],
    [{"text": "a document"}],
)  # fmt: skip
TEMPLATE_PARTS = (
    "{{ bos_token }}", "{% for m in messages %}", "{% for message in messages %}", "{% endfor %}", "{{ m.content }}", "{{ message['content'] }}",
    "<|im_start|>{{ m.role }}\n", "<|im_end|>\n", "{{ eos_token }}", "{% if m.role == 'assistant' %}", "{% if add_generation_prompt %}",
    "{% endif %}", "{% else %}", "{% generation %}", "{% endgeneration %}", "{{ raise_exception('no') }}", "{% set ns = namespace(a=1) %}",
    "{{ tools | tojson }}", "{% if tools %}", "{{ strftime_now('%Y') }}", "{{ messages[0].content | trim }}", "{{ m.content.split('</think>')[-1] }}",
    "{% macro f(x) %}", "{% endmacro %}", "{{ f(f) }}", "{{ f('a') }}", "{{ messages.append(1) }}", "{{ ''.__class__.__mro__ }}",
    "{{ 1 / 0 }}", "{{ 'a' * 100000 }}", "{{ range(100000) | list | length }}", "{{ loop.index0 }}", "{{ undefined_name.x }}", "{{ m.x.y.z }}",
    "{% include 'x' %}", "{% import 'x' as y %}", "{% extends 'x' %}", "{% break %}", "{% continue %}", "{#", "{{", "%}", "{% raw %}",
    "{% for i in range(2000) %}", "{{ cycler(1, 2).next() }}", "{{ lipsum(2) }}", "{{ self.x() }}", "{% set m = 3 %}", "{{ m | upper }}", "\ud83d",
    "{{ documents }}", "{{ messages | map(attribute='content') | join('\n') }}", "{% filter upper %}", "{% endfilter %}", "{{ namespace }}", "\n", "A",
)  # fmt: skip
WHOLE_TEMPLATES = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% endif %}",
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %} {{ m.content }}{{ eos_token }}"
    "{% endif %}{% endfor %}",
    "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}{% else %}{{ m.content }}\n"
    "{% endif %}{% endfor %}",
)


def weights() -> dict[str, np.ndarray]:
    """Weights of the first configuration under Hugging Face's names."""
    rng, made = np.random.default_rng(0), {}
    shapes = {"model.embed_tokens.weight": (64, 32), "model.norm.weight": (32,), "lm_head.weight": (64, 32)}
    for layer in range(2):
        begin = f"model.layers.{layer}."
        shapes |= {
            f"{begin}self_attn.{name}_proj.weight": (rows, 32)
            for name, rows in (("q", 32), ("k", 16), ("v", 16), ("o", 32))
        }
        shapes |= {
            f"{begin}mlp.gate_proj.weight": (48, 32),
            f"{begin}mlp.up_proj.weight": (48, 32),
            f"{begin}mlp.down_proj.weight": (32, 48),
        }
        shapes |= {f"{begin}{name}.weight": (32,) for name in ("input_layernorm", "post_attention_layernorm")}
    for name, shape in shapes.items():
        made[name] = rng.standard_normal(shape, np.float32)
    return made


def lora_tensors() -> dict[str, np.ndarray]:
    """Tensors of `ADAPTER` over the first configuration."""
    rng, made = np.random.default_rng(1), {}
    for layer in range(2):
        for name, rows in (("q_proj", 32), ("v_proj", 16)):
            begin = f"base_model.model.model.layers.{layer}.self_attn.{name}."
            made[f"{begin}lora_A.weight"] = rng.standard_normal((4, 32), np.float32)
            made[f"{begin}lora_B.weight"] = rng.standard_normal((rows, 4), np.float32)
    return made


@functools.cache
def sentencepiece_model(kind: str) -> bytes:
    """A small model with byte fallback, "unigram" or "bpe"."""
    import sentencepiece

    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter("\n".join(pydoc_data.topics.topics.values()).splitlines()[:3000]),
        model_writer=written, model_type=kind, vocab_size=400, byte_fallback=True, character_coverage=0.99, pad_id=3, minloglevel=2,
    )  # fmt: skip
    return written.getvalue()


@functools.cache
def byte_level_tokenizer() -> dict[str, Any]:
    """A small byte-level BPE as tokenizer.json, with the marks of ChatML."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator(["The quick brown fox jumps over the lazy dog. 123"] * 20, trainer)
    made.add_special_tokens(
        [tokenizers.AddedToken(name, special=True) for name in ("<s>", "</s>", "<|im_start|>", "<|im_end|>")]
    )
    return json.loads(made.to_str())


BYTE_LEVEL_CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", "pad_token": None, "unk_token": None,
    "model_max_length": 2048, "clean_up_tokenization_spaces": False, "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
    "chat_template": WHOLE_TEMPLATES[0],
}  # fmt: skip
SENTENCEPIECE_CONFIG = {
    "tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>", "legacy": True,
    "add_bos_token": True, "add_eos_token": False, "add_prefix_space": True, "sp_model_kwargs": {}, "chat_template": WHOLE_TEMPLATES[1],
    "added_tokens_decoder": {"1": {"content": "<s>", "lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}},
}  # fmt: skip
SPECIALS = {
    "bos_token": "<s>",
    "eos_token": {"content": "</s>", "lstrip": False, "normalized": False, "rstrip": False, "single_word": False},
}
