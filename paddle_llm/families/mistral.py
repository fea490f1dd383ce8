"""Mistral 7B (Jiang et al. 2023): LLaMA with optional sliding-window attention."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from paddle_llm.families import decoder
from paddle_llm.families.config_keys import expect, expect_head_width, same
from paddle_llm.families.parameters import decoder_shapes
from paddle_llm.families.rope import translate_rope
from paddle_llm.families.spec import (
    COLUMN,
    Capabilities,
    ConfigJson,
    CpuOperations,
    Engines,
    Family,
    Gguf,
    PrefixLayers,
    Weights,
)

if TYPE_CHECKING:
    from paddlenlp.transformers import PretrainedConfig


def _translate(values: dict[str, Any], raw: dict[str, Any], problems: list[str]) -> None:
    expect(raw, problems, hidden_act=("silu", "swish"), attention_dropout=(0.0, 0), tie_word_embeddings=False)
    window = raw.get("sliding_window")
    if window is not None and (type(window) is not int or window < 1):
        problems.append(f"sliding_window = {window!r} (expected: a whole number of at least 1, or null)")
    expect_head_width(values, raw, problems)
    translate_rope(values, raw, problems)
    if values.pop("rope_scaling", None) or values.pop("rope_scaling_type", None):
        problems.append("scaled RoPE, which PaddleNLP's Mistral ignores")


def _write(config: PretrainedConfig) -> dict[str, Any]:
    return {
        **decoder.decoder_config(config, "MistralForCausalLM", "mistral"),
        "head_dim": config.hidden_size // config.num_attention_heads,
        **same(config, "sliding_window"),
    }


MISTRAL = Family(
    name="mistral",
    title="Mistral",
    aliases=(),
    config_class="paddlenlp.transformers.mistral.configuration:MistralConfig",
    model_class="paddlenlp.transformers.mistral.modeling:MistralForCausalLM",
    pipeline_class=None,
    patches="paddle_llm.models.patches.mistral",
    capabilities=Capabilities(
        sequence_parallel=False,
        recompute_granularities=("full",),
        recompute_skips_layers="never",
        flash_attention=True,
        fused_rms_norm=False,
        fused_rope=False,
        fused_matrices=False,
        replicates_key_value_heads=False,
        needs_divided_hidden_size=True,
        prompt_tuning=True,
        prefix_projection=True,
        packed_prefix=True,
    ),
    config_json=ConfigJson(
        model_types=("mistral",),
        identify=lambda raw: "mistral",
        known_fields=frozenset({
            "hidden_act", "head_dim", "rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor",
            "sliding_window", "attention_dropout",
        }),
        translate=_translate,
        write=_write,
        feed_forward_factor=None,
        key_value_heads=decoder.always,
        layers="num_hidden_layers",
        dropout=None,
        epsilon="rms_norm_eps",
        sequence_length=None,
        attention_window="sliding_window",
        code_repository=None,
    ),
    weights=Weights(
        embedding="mistral.embed_tokens.weight",
        head="lm_head.weight",
        tied_head=None,
        tie="never",
        prefixes=(("mistral.", "model."), ("lm_head.", "lm_head.")),
        infixes=(),
        infix_prefix=None,
        hugging_face_base_prefix="model.",
        hugging_face_sign="model.",
        split_axes=(
            *decoder.EMBEDDING_AND_HEAD_AXES,
            *decoder.OUTPUT_AXES,
            (r"(q|k|v|gate|up)_proj\.weight", COLUMN),
        ),
        sections=(),
        residual_outputs=decoder.RESIDUAL_OUTPUTS,
    ),
    network=replace(
        decoder.NETWORK,
        prefix=PrefixLayers(
            layer=".self_attn",
            kind="cache",
            arguments=(
                "hidden_states", "attention_mask", "position_ids", "past_key_value", "output_attentions", "use_cache",
            ),
            cache="past_key_value",
            mask="attention_mask",
            cache_axis=2,
            alibi=False,
            cache_is_last=True,
        ),
    ),
    static_program=decoder.static_program("mistral", "paddlenlp.transformers.mistral.modeling:MistralAttention"),
    cpu_operations=CpuOperations(attention_in_blocks=False, activation_keeps=3),
    engines=Engines(transformers=True, paddleformers=False, fastdeploy=False, gguf=Gguf(architecture="llama", interleaves_rotary=True)),
    shapes=decoder_shapes,
)  # fmt: skip
