"""ChatGLM-6B: the first version, a GLM that reads its prompt in both directions (Du et al. 2022)."""

from __future__ import annotations

from collections.abc import Mapping
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
    Engines,
    Family,
    Network,
    PrefixLayers,
    StaticProgram,
    Weights,
)

if TYPE_CHECKING:
    from paddlenlp.transformers import PretrainedConfig

# Files of the authors' repositories, which ChatGLM2 and 3 use under the same names.
AUTO_MAP = {
    "AutoConfig": "configuration_chatglm.ChatGLMConfig",
    "AutoModel": "modeling_chatglm.ChatGLMForConditionalGeneration",
    "AutoModelForCausalLM": "modeling_chatglm.ChatGLMForConditionalGeneration",
    "AutoModelForSeq2SeqLM": "modeling_chatglm.ChatGLMForConditionalGeneration",
}


def identify(raw: Mapping[str, Any]) -> str:
    """Return the version: Hugging Face calls ChatGLM 1, 2 and 3 all "chatglm", and their fields differ."""
    return "chatglm_v2" if "multi_query_group_num" in raw or "padded_vocab_size" in raw else "chatglm"


def _translate(values: dict[str, Any], raw: dict[str, Any], problems: list[str]) -> None:
    rename(values, {"num_layers": "num_hidden_layers"})
    expect(raw, problems, position_encoding_2d=True, pre_seq_len=None, activation="gelu")


def _write(config: PretrainedConfig) -> dict[str, Any]:
    return {
        "architectures": ["ChatGLMModel"],
        "auto_map": AUTO_MAP,
        "model_type": "chatglm",
        "num_layers": config.num_hidden_layers,
        **same(config, "vocab_size", "hidden_size", "inner_hidden_size", "num_attention_heads", "layernorm_epsilon"),
        **same(config, "max_sequence_length", "position_encoding_2d", "mask_token_id", "gmask_token_id"),
    }


CHATGLM = Family(
    name="chatglm",
    title="ChatGLM-6B",
    aliases=(),
    config_class="paddlenlp.transformers.chatglm.configuration:ChatGLMConfig",
    model_class="paddlenlp.transformers.chatglm.modeling:ChatGLMForCausalLM",
    pipeline_class=None,
    patches="paddle_llm.models.patches.chatglm",
    capabilities=Capabilities(
        sequence_parallel=False,
        recompute_granularities=("full",),
        recompute_skips_layers="never",
        flash_attention=True,
        fused_rms_norm=False,
        fused_rope=False,
        fused_matrices=False,
        replicates_key_value_heads=False,
        needs_divided_hidden_size=False,
        prompt_tuning=False,
        prefix_projection=True,
        packed_prefix=False,
    ),
    config_json=ConfigJson(
        model_types=("chatglm",),
        identify=identify,
        known_fields=frozenset({
            "num_layers", "quantization_bit", "quantization_embeddings", "pre_seq_len", "prefix_projection", "activation",
        }),
        translate=_translate,
        write=_write,
        feed_forward_factor=None,
        key_value_heads=always,
        layers="num_hidden_layers",
        dropout=None,
        epsilon="layernorm_epsilon",
        sequence_length=None,
        attention_window=None,
        code_repository="THUDM/chatglm-6b",
    ),
    weights=Weights(
        embedding="chatglm.transformer.word_embeddings.weight",
        head=None,
        tied_head="lm_head.decoder_weight",
        tie="always",
        prefixes=(("chatglm.transformer.", "transformer."),),
        infixes=(),
        infix_prefix=None,
        hugging_face_base_prefix="",
        hugging_face_sign=None,
        split_axes=(
            (r"word_embeddings\.weight", ROW),
            (r"(attention\.dense|dense_4h_to_h)\.weight", ROW),
            (r"(query_key_value|dense_h_to_4h)\.(weight|bias)", COLUMN),
        ),
        sections=(),
        residual_outputs=(),
    ),
    network=Network(
        positions="rotary",
        bidirectional_prefix=True,
        pretrains_prefix=True,
        prompt_marks=("gmask_token_id", "bos_token_id"),
        head_path="lm_head",
        head_is_norm=False,
        head_length_axis=0,
        cache="cache",
        cache_row_axis=1,
        takes_positions=True,
        full_mask=True,
        block_positions=True,
        prefix=PrefixLayers(
            layer=".attention",
            kind="cache",
            arguments=(
                "hidden_states", "attention_mask", "position_ids", "use_cache", "cache", "layer_id", "rotary_embeds",
            ),
            cache="cache",
            mask="attention_mask",
            cache_axis=0,
            alibi=False,
            cache_is_last=False,
        ),
        default_lora_targets=("query_key_value",),
        zero_gradient=None,
        zero_gradient_part=None,
    ),
    static_program=StaticProgram(
        layer="chatglm.transformer.layers.{}.",
        qkv=("attention.query_key_value",),
        out="attention.dense",
        up=("mlp.dense_h_to_4h",),
        down="mlp.dense_4h_to_h",
        norms=("input_layernorm", "post_attention_layernorm"),
        first_norm=None,
        last_norm="chatglm.transformer.final_layernorm",
        position_tables=(),
        project_in=None,
        project_out=None,
        activation="gelu",
        rms_norm=False,
        rotary="two-dimensional",
        rotary_class=None,
        interleaved_qkv=True,
        scaled_by_layer=True,
        residual="sqrt(2 layers)",
        norm_first=None,
        position_rows=2,
        position_offset=0,
    ),
    cpu_operations=CpuOperations(attention_in_blocks=False, activation_keeps=1),
    engines=Engines(transformers=False, paddleformers=False, fastdeploy=False, gguf=None),
    shapes=with_all_biases,
)  # fmt: skip
