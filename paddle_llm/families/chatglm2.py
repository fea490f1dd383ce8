"""ChatGLM2-6B and ChatGLM3-6B: multi-query attention, RMSNorm, SwiGLU, rotary positions in half of each head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from paddle_llm.families.chatglm import AUTO_MAP
from paddle_llm.families.config_keys import expect, rename, same
from paddle_llm.families.facts import ModelFacts
from paddle_llm.families.parameters import ALL_BIASES, ModelShapes, decoder_shapes
from paddle_llm.families.spec import (
    ALL_GRANULARITIES,
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
    rename(values, {"num_layers": "num_hidden_layers", "padded_vocab_size": "vocab_size"})
    rename(values, {"seq_length": "max_sequence_length"})
    # PaddleNLP reads the number of groups only; without multi-query attention every head is a group.
    if values.pop("multi_query_attention", True) is False:
        values["multi_query_group_num"] = values.get("num_attention_heads")
    expect(raw, problems, rope_ratio=(1, 1.0), rmsnorm=True, post_layer_norm=True, original_rope=True)
    channels, heads, hidden = (values.get(key) for key in ("kv_channels", "num_attention_heads", "hidden_size"))
    if channels and heads and hidden and channels * heads != hidden:
        problems.append(
            f"kv_channels = {channels} with hidden_size = {hidden} and {heads} heads (supported: hidden_size / heads)"
        )


def _write(config: PretrainedConfig) -> dict[str, Any]:
    return {
        "architectures": ["ChatGLMModel"],
        "auto_map": AUTO_MAP,
        "model_type": "chatglm",
        "num_layers": config.num_hidden_layers,
        "padded_vocab_size": config.vocab_size,
        "seq_length": config.max_sequence_length,
        "multi_query_attention": True,
        "original_rope": True,
        **same(config, "hidden_size", "ffn_hidden_size", "kv_channels", "num_attention_heads", "multi_query_group_num"),
        **same(config, "hidden_dropout", "attention_dropout", "layernorm_epsilon", "rmsnorm", "post_layer_norm"),
        **same(config, "apply_residual_connection_post_layernorm", "add_bias_linear", "add_qkv_bias"),
        **same(config, "bias_dropout_fusion", "apply_query_key_layer_scaling", "attention_softmax_in_fp32"),
        **same(config, "fp32_residual_connection"),
    }


def _has_groups(raw: Mapping[str, Any]) -> bool:
    return raw.get("multi_query_attention") is not False


def _shapes(family: Family, facts: ModelFacts) -> ModelShapes:
    """Return the weights; config.json decides about biases."""
    everywhere, qkv = facts.raw.get("add_bias_linear"), facts.raw.get("add_qkv_bias")
    biases = ALL_BIASES if everywhere else frozenset(("qkv",)) if qkv else frozenset()
    return decoder_shapes(family, facts, biases=biases)


CHATGLM2 = Family(
    name="chatglm_v2",
    title="ChatGLM2/3",
    aliases=("chatglm", "chatglm2", "chatglm3"),
    config_class="paddlenlp.transformers.chatglm_v2.configuration:ChatGLMv2Config",
    model_class="paddlenlp.transformers.chatglm_v2.modeling:ChatGLMv2ForCausalLM",
    pipeline_class="paddlenlp.transformers.chatglm_v2.modeling_pp:ChatGLMv2ForCausalLMPipe",
    patches="paddle_llm.models.patches.chatglm2",
    capabilities=Capabilities(
        sequence_parallel=True,
        recompute_granularities=ALL_GRANULARITIES,
        recompute_skips_layers="always",
        flash_attention=True,
        fused_rms_norm=True,  # by the patch in models/patches
        fused_rope=False,
        fused_matrices=False,
        replicates_key_value_heads=False,
        needs_divided_hidden_size=False,
        prompt_tuning=True,
        prefix_projection=True,
        packed_prefix=True,
    ),
    config_json=ConfigJson(
        model_types=("chatglm_v2", "chatglmv2"),
        identify=lambda raw: "chatglm_v2",
        known_fields=frozenset({
            "num_layers", "padded_vocab_size", "seq_length", "multi_query_attention", "rope_ratio", "original_rope",
            "quantization_bit", "pre_seq_len", "prefix_projection", "classifier_dropout", "interleaved_qkv",
        }),
        translate=_translate,
        write=_write,
        feed_forward_factor=None,
        key_value_heads=_has_groups,
        layers="num_hidden_layers",
        dropout=DropoutKeys(
            hidden=("hidden_dropout",), attention=("attention_dropout",), default_hidden=0.0, default_attention=0.0
        ),
        epsilon="layernorm_epsilon",
        sequence_length="position table",
        attention_window=None,
        code_repository="THUDM/chatglm2-6b or THUDM/chatglm3-6b",
    ),
    weights=Weights(
        embedding="chatglm_v2.embedding.word_embeddings.weight",
        head="chatglm_v2.output_layer.weight",
        tied_head=None,
        tie="never",
        prefixes=(("chatglm_v2.", "transformer."),),
        infixes=(),
        infix_prefix=None,
        hugging_face_base_prefix="",
        hugging_face_sign="transformer.",
        split_axes=(
            (r"word_embeddings\.weight", ROW),
            (r"output_layer\.weight", COLUMN),
            (r"(self_attention\.dense|dense_4h_to_h)\.weight", ROW),
            (r"(query_key_value|dense_h_to_4h)\.(weight|bias)", COLUMN),
        ),
        # SwiGLU halves the matrix on each rank, so each rank needs its part of the gate and of the up projection.
        sections=(("query_key_value", "query, key, value"), ("dense_h_to_4h", "halves")),
        residual_outputs=("self_attention.dense.weight", "dense_4h_to_h.weight"),
    ),
    network=Network(
        positions="rotary",
        bidirectional_prefix=False,
        pretrains_prefix=False,
        prompt_marks=(),
        head_path="chatglm_v2.output_layer",
        head_is_norm=False,
        head_length_axis=0,
        cache="past_key_values",
        cache_row_axis=1,
        takes_positions=True,
        full_mask=False,
        block_positions=False,
        prefix=PrefixLayers(
            layer=".self_attention",
            kind="core",
            arguments=(),
            cache="",
            mask="",
            cache_axis=0,
            alibi=False,
            cache_is_last=False,
        ),
        default_lora_targets=("query_key_value",),
        zero_gradient=None,
        zero_gradient_part=None,
    ),
    static_program=StaticProgram(
        layer="chatglm_v2.encoder.layers.{}.",
        qkv=("self_attention.query_key_value",),
        out="self_attention.dense",
        up=("mlp.dense_h_to_4h",),
        down="mlp.dense_4h_to_h",
        norms=("input_layernorm", "post_attention_layernorm"),
        first_norm=None,
        last_norm="chatglm_v2.encoder.final_layernorm",
        position_tables=(),
        project_in=None,
        project_out=None,
        activation="swiglu",
        rms_norm=True,
        rotary="half the head",
        rotary_class=None,
        interleaved_qkv=False,
        scaled_by_layer=False,
        residual="configured",
        norm_first=None,
        position_rows=1,
        position_offset=0,
    ),
    cpu_operations=CpuOperations(attention_in_blocks=False, activation_keeps=3),
    engines=Engines(transformers=False, paddleformers=False, fastdeploy=False, gguf=None),
    shapes=_shapes,
)  # fmt: skip
