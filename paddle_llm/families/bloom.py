"""BLOOM and BLOOMZ (Le Scao et al. 2022): ALiBi in place of position embeddings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from paddle_llm.families.config_keys import expect, rename, same
from paddle_llm.families.decoder import always
from paddle_llm.families.parameters import with_all_biases
from paddle_llm.families.spec import (
    COLUMN,
    ROW,
    Capabilities,
    ConfigJson,
    CpuOperations,
    DropoutKeys,
    Engines,
    Family,
    Network,
    PrefixLayers,
    StaticProgram,
    Weights,
)

if TYPE_CHECKING:
    from paddlenlp.transformers import PretrainedConfig


def _translate(values: dict[str, Any], raw: dict[str, Any], problems: list[str]) -> None:
    expect(raw, problems, tie_word_embeddings=True)
    rename(values, {"n_embed": "hidden_size", "n_embd": "hidden_size", "num_hidden_layers": "n_layer"})
    rename(values, {"num_attention_heads": "n_head", "num_layers": "n_layer"})
    # They reproduce Megatron's old tensor-parallel slices: only the order of a sum changes, at a high cost.
    values.pop("slow_but_exact", None)
    values.pop("pretraining_tp", None)


def _write(config: PretrainedConfig) -> dict[str, Any]:
    return {
        "architectures": ["BloomForCausalLM"],
        "model_type": "bloom",
        **same(config, "vocab_size", "hidden_size", "n_layer", "n_head", "layer_norm_epsilon", "initializer_range"),
        **same(config, "apply_residual_connection_post_layernorm", "hidden_dropout", "attention_dropout"),
        "pretraining_tp": 1,
        "slow_but_exact": False,
    }


BLOOM = Family(
    name="bloom",
    title="BLOOM",
    aliases=(),
    config_class="paddlenlp.transformers.bloom.configuration:BloomConfig",
    model_class="paddlenlp.transformers.bloom.modeling:BloomForCausalLM",
    pipeline_class="paddle_llm.models.patches.bloom_pipeline:BloomForCausalLMPipe",
    patches="paddle_llm.models.patches.bloom",
    capabilities=Capabilities(
        sequence_parallel=False,
        recompute_granularities=("full",),
        recompute_skips_layers="in a pipeline",
        flash_attention=True,
        fused_rms_norm=False,
        fused_rope=False,
        fused_matrices=False,
        replicates_key_value_heads=False,
        needs_divided_hidden_size=False,
        prompt_tuning=True,
        prefix_projection=True,
        packed_prefix=False,
    ),
    config_json=ConfigJson(
        model_types=("bloom",),
        identify=lambda raw: "bloom",
        known_fields=frozenset({
            "n_embed", "n_embd", "num_hidden_layers", "num_attention_heads", "num_layers", "slow_but_exact", "offset_alibi",
            "skip_bias_add", "skip_bias_add_qkv", "bias_dropout_fusion", "masked_softmax_fusion", "attention_softmax_in_fp32",
            "n_inner", "eos_token",
        }),
        translate=_translate,
        write=_write,
        feed_forward_factor=4,
        key_value_heads=always,
        layers="n_layer",
        dropout=DropoutKeys(
            hidden=("hidden_dropout",), attention=("attention_dropout",), default_hidden=0.0, default_attention=0.0
        ),
        epsilon="layer_norm_epsilon",
        sequence_length=None,
        attention_window=None,
        code_repository=None,
    ),
    weights=Weights(
        embedding="bloom.word_embeddings.weight",
        head=None,
        tied_head="lm_head.decoder_weight",
        tie="always",
        prefixes=(("bloom.", "transformer."),),
        infixes=(),
        infix_prefix=None,
        hugging_face_base_prefix="transformer.",
        hugging_face_sign="transformer.",
        split_axes=(
            (r"word_embeddings\.weight", ROW),
            (r"(self_attention\.dense|dense_4h_to_h)\.weight", ROW),
            (r"(query_key_value|dense_h_to_4h)\.(weight|bias)", COLUMN),
        ),
        sections=(),
        residual_outputs=(),
    ),
    network=Network(
        positions="ALiBi",
        bidirectional_prefix=False,
        pretrains_prefix=False,
        prompt_marks=(),
        head_path="lm_head",
        head_is_norm=False,
        head_length_axis=1,
        cache="cache",
        cache_row_axis=0,
        takes_positions=False,
        full_mask=False,
        block_positions=False,
        prefix=PrefixLayers(
            layer=".self_attention",
            kind="cache",
            arguments=(
                "hidden_states", "residual", "alibi", "attention_mask", "layer_past", "head_mask", "use_cache",
                "output_attentions",
            ),
            cache="layer_past",
            mask="attention_mask",
            cache_axis=1,
            alibi=True,
            cache_is_last=False,
        ),
        default_lora_targets=("query_key_value",),
        zero_gradient=None,
        # The bias of a key moves all scores of a query alike, which the softmax does not see.
        zero_gradient_part=("self_attention.query_key_value.bias", 1),
    ),
    static_program=StaticProgram(
        layer="bloom.h.{}.",
        qkv=("self_attention.query_key_value",),
        out="self_attention.dense",
        up=("mlp.dense_h_to_4h",),
        down="mlp.dense_4h_to_h",
        norms=("input_layernorm", "post_attention_layernorm"),
        first_norm="bloom.word_embeddings_layernorm",
        last_norm="bloom.ln_f",
        position_tables=(),
        project_in=None,
        project_out=None,
        activation="gelu",
        rms_norm=False,
        rotary=None,
        rotary_class=None,
        interleaved_qkv=True,
        scaled_by_layer=False,
        residual="configured",
        norm_first=None,
        position_rows=1,
        position_offset=0,
    ),
    cpu_operations=CpuOperations(attention_in_blocks=False, activation_keeps=7),
    engines=Engines(transformers=True, paddleformers=False, fastdeploy=False, gguf=None),
    shapes=with_all_biases,
)  # fmt: skip
