"""What the decoders with rotary positions, grouped-query attention, RMSNorm and SwiGLU share (LLaMA, Qwen2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from paddle_llm.core.errors import UserError
from paddle_llm.families.config_keys import same
from paddle_llm.families.rope import written_rope
from paddle_llm.families.spec import COLUMN, ROW, Network, PrefixLayers, StaticProgram

if TYPE_CHECKING:
    from paddlenlp.transformers import PretrainedConfig

RESIDUAL_OUTPUTS = ("o_proj.weight", "down_proj.weight")
EMBEDDING_AND_HEAD_AXES = ((r"embed_tokens\.weight", ROW), (r"lm_head\.weight", COLUMN))
OUTPUT_AXES = ((r"(o_proj|down_proj)\.weight", ROW),)

NETWORK = Network(
    positions="rotary",
    bidirectional_prefix=False,
    pretrains_prefix=False,
    prompt_marks=(),
    head_path="lm_head",
    head_is_norm=False,
    head_length_axis=1,
    cache="past_key_values",
    cache_row_axis=0,
    takes_positions=True,
    full_mask=False,
    block_positions=False,
    prefix=PrefixLayers(
        layer=".self_attn",
        kind="function",
        arguments=(),
        cache="",
        mask="",
        cache_axis=1,
        alibi=False,
        cache_is_last=False,
    ),
    default_lora_targets=("q_proj", "v_proj"),
    zero_gradient=None,
    zero_gradient_part=None,
)


def static_program(name: str, rotary_class: str) -> StaticProgram:
    """Return the description of the static program of a decoder.

    Args:
        name: Beginning of the canonical names.
        rotary_class: Attention class of PaddleNLP, as "module:attribute".
    """
    return StaticProgram(
        layer=f"{name}.layers.{{}}.",
        qkv=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        out="self_attn.o_proj",
        up=("mlp.gate_proj", "mlp.up_proj"),
        down="mlp.down_proj",
        norms=("input_layernorm", "post_attention_layernorm"),
        first_norm=None,
        last_norm=f"{name}.norm",
        position_tables=(),
        project_in=None,
        project_out=None,
        activation="swiglu",
        rms_norm=True,
        rotary="halves",
        rotary_class=rotary_class,
        interleaved_qkv=False,
        scaled_by_layer=False,
        residual=None,
        norm_first=None,
        position_rows=1,
        position_offset=0,
    )


def decoder_config(config: PretrainedConfig, architecture: str, model_type: str) -> dict[str, Any]:
    """Return the fields of Hugging Face's config.json that these decoders share.

    Args:
        config: PaddleNLP's configuration.
        architecture: Class name in transformers.
        model_type: Name of the family in transformers.

    Raises:
        UserError: If the network does something that transformers cannot express.
    """
    if getattr(config, "alibi", False):
        raise UserError(
            "alibi = true cannot be written in Hugging Face's format, which has rotary positions only. Keep the model in PaddleNLP's format."
        )
    return {
        "architectures": [architecture],
        "model_type": model_type,
        "hidden_act": "silu",
        "attention_dropout": 0.0,
        **same(config, "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
        **same(config, "num_key_value_heads", "max_position_embeddings", "initializer_range", "rms_norm_eps"),
        **written_rope(config),
    }


def always(_: Mapping[str, Any]) -> bool:
    """Return True: the number of key-value heads in config.json always applies. See `ConfigJson.key_value_heads`."""
    return True
