"""LLaMA 1, 2 and 3 (Touvron et al. 2023, Dubey et al. 2024)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from paddle_llm.families import decoder
from paddle_llm.families.config_keys import expect, expect_head_width, rename
from paddle_llm.families.facts import ModelFacts
from paddle_llm.families.parameters import ModelShapes, decoder_shapes
from paddle_llm.families.rope import translate_rope
from paddle_llm.families.spec import (
    ALL_GRANULARITIES,
    COLUMN,
    Capabilities,
    ConfigJson,
    CpuOperations,
    Engines,
    Family,
    Gguf,
    Weights,
)

if TYPE_CHECKING:
    from paddlenlp.transformers import PretrainedConfig


def _translate(values: dict[str, Any], raw: dict[str, Any], problems: list[str]) -> None:
    rename(values, {"n_embd": "hidden_size", "n_layer": "num_hidden_layers", "n_head": "num_attention_heads"})
    rename(values, {"n_inner": "intermediate_size", "n_positions": "max_position_embeddings"})
    rename(values, {"activation_function": "hidden_act"})
    expect(raw, problems, hidden_act=("silu", "swish"), attention_bias=False, mlp_bias=False)
    expect(raw, problems, attention_dropout=(0.0, 0, None))
    expect_head_width(values, raw, problems)
    translate_rope(values, raw, problems)


def _write(config: PretrainedConfig) -> dict[str, Any]:
    return {
        **decoder.decoder_config(config, "LlamaForCausalLM", "llama"),
        "head_dim": config.hidden_size // config.num_attention_heads,
        "attention_bias": False,
        "mlp_bias": False,
        "pretraining_tp": 1,
    }


def _shapes(family: Family, facts: ModelFacts) -> ModelShapes:
    """Return the weights; config.json decides about biases."""
    biases = {"qkv", "out"} if facts.raw.get("attention_bias") else set()
    biases |= {"mlp"} if facts.raw.get("mlp_bias") else set()
    return decoder_shapes(family, facts, biases=frozenset(biases))


LLAMA = Family(
    name="llama",
    title="LLaMA",
    aliases=(),
    config_class="paddlenlp.transformers.llama.configuration:LlamaConfig",
    model_class="paddlenlp.transformers.llama.modeling:LlamaForCausalLM",
    pipeline_class="paddlenlp.transformers.llama.modeling_pp:LlamaForCausalLMPipe",
    patches="paddle_llm.models.patches.llama",
    capabilities=Capabilities(
        sequence_parallel=True,
        recompute_granularities=ALL_GRANULARITIES,
        recompute_skips_layers="always",
        flash_attention=True,
        fused_rms_norm=True,
        fused_rope=True,
        fused_matrices=True,
        replicates_key_value_heads=True,
        needs_divided_hidden_size=True,
        prompt_tuning=True,
        prefix_projection=True,
        packed_prefix=True,
    ),
    config_json=ConfigJson(
        model_types=("llama",),
        identify=lambda raw: "llama",
        known_fields=frozenset({
            "hidden_act", "activation_function", "attention_bias", "mlp_bias", "head_dim", "attention_dropout", "rope_theta",
            "rope_scaling", "rope_parameters", "partial_rotary_factor", "max_sequence_length", "n_embd", "n_layer", "n_head",
            "n_inner", "n_positions",
        }),
        translate=_translate,
        write=_write,
        feed_forward_factor=None,
        key_value_heads=decoder.always,
        layers="num_hidden_layers",
        dropout=None,
        epsilon="rms_norm_eps",
        sequence_length="seq_length",
        attention_window=None,
        code_repository=None,
    ),
    weights=Weights(
        embedding="llama.embed_tokens.weight",
        head="lm_head.weight",
        tied_head="lm_head.weight",
        tie="configured",
        prefixes=(("llama.", "model."), ("lm_head.", "lm_head.")),
        infixes=(),
        infix_prefix=None,
        hugging_face_base_prefix="model.",
        hugging_face_sign="model.",
        split_axes=(
            *decoder.EMBEDDING_AND_HEAD_AXES,
            *decoder.OUTPUT_AXES,
            (r"(qkv|q|k|v|gate|up|gate_up_fused)_proj\.weight", COLUMN),
        ),
        # SwiGLU halves the matrix on each rank, so each rank needs its part of the gate and of the up projection.
        sections=(("gate_up_fused_proj", "halves"),),
        residual_outputs=decoder.RESIDUAL_OUTPUTS,
    ),
    network=decoder.NETWORK,
    static_program=decoder.static_program("llama", "paddlenlp.transformers.llama.modeling:LlamaAttention"),
    cpu_operations=CpuOperations(attention_in_blocks=True, activation_keeps=3),
    engines=Engines(transformers=True, paddleformers=True, fastdeploy=True, gguf=Gguf(architecture="llama", interleaves_rotary=True)),
    shapes=_shapes,
)  # fmt: skip
