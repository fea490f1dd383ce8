"""GLM (Du et al. 2022): a prompt read in both directions, learned positions in the text and in the generated block."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from paddle_llm.families.config_keys import expect, rename, same
from paddle_llm.families.decoder import always
from paddle_llm.families.facts import ModelFacts
from paddle_llm.families.parameters import ALL_BIASES, ModelShapes, decoder_shapes
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

_AUTO_MAP = {
    "AutoConfig": "configuration_glm.GLMConfig",
    "AutoModel": "modeling_glm.GLMModel",
    "AutoModelForSeq2SeqLM": "modeling_glm.GLMForConditionalGeneration",
    "AutoModelForMultipleChoice": "modeling_glm.GLMForMultipleChoice",
}


def _identify(raw: Mapping[str, Any]) -> str:
    """Return "glm4" for transformers' "glm", which is another network."""
    return "glm4" if "rms_norm_eps" in raw else "glm"


def _translate(values: dict[str, Any], raw: dict[str, Any], problems: list[str]) -> None:
    rename(values, {"num_hidden_layers": "num_layers"})
    expect(raw, problems, relative_encoding=False, spell_length=None, tie_word_embeddings=True)
    values["output_predict"] = True  # otherwise the network has no head


def _write(config: PretrainedConfig) -> dict[str, Any]:
    return {
        "architectures": ["GLMModel"],
        "auto_map": _AUTO_MAP,
        "model_type": "glm",
        "output_predict": True,
        "relative_encoding": False,
        **same(config, "vocab_size", "hidden_size", "num_layers", "num_attention_heads", "max_sequence_length"),
        **same(config, "embedding_dropout_prob", "attention_dropout_prob", "output_dropout_prob"),
        **same(config, "block_position_encoding", "parallel_output", "pool_token", "spell_func", "attention_scale"),
        **same(config, "layernorm_epsilon", "initializer_range"),
    }


def _shapes(family: Family, facts: ModelFacts) -> ModelShapes:
    """Return the weights, with positions in the text and in the block, one more of each than the longest sequence."""
    length, blocks = facts.max_position_embeddings or 512, facts.raw.get("block_position_encoding", True)
    shapes = decoder_shapes(family, facts, biases=ALL_BIASES, position_rows=length + bool(blocks))
    if blocks:
        return shapes
    unused = family.static_program.position_tables[1]
    return replace(shapes, embedding=tuple(weight for weight in shapes.embedding if weight.name != unused))


GLM = Family(
    name="glm",
    title="GLM",
    aliases=(),
    config_class="paddlenlp.transformers.glm.configuration:GLMConfig",
    model_class="paddlenlp.transformers.glm.modeling:GLMForConditionalGeneration",
    pipeline_class=None,
    patches="paddle_llm.models.patches.glm",
    capabilities=Capabilities(
        sequence_parallel=False,
        recompute_granularities=("full",),
        recompute_skips_layers="never",
        flash_attention=False,
        fused_rms_norm=False,
        fused_rope=False,
        fused_matrices=False,
        replicates_key_value_heads=False,
        needs_divided_hidden_size=False,
        prompt_tuning=False,
        prefix_projection=False,  # its prefix is hidden states
        packed_prefix=False,
    ),
    config_json=ConfigJson(
        model_types=("glm",),
        identify=_identify,
        known_fields=frozenset({
            "num_hidden_layers", "relative_encoding", "spell_length", "checkpoint_activations", "checkpoint_num_layers",
        }),
        translate=_translate,
        write=_write,
        feed_forward_factor=4,
        key_value_heads=always,
        layers="num_hidden_layers",
        dropout=DropoutKeys(
            hidden=("embedding_dropout_prob", "output_dropout_prob"), attention=("attention_dropout_prob",),
            default_hidden=0.1, default_attention=0.1,
        ),
        epsilon="layernorm_epsilon",
        sequence_length=None,
        attention_window=None,
        code_repository="THUDM/glm-10b",
    ),
    weights=Weights(
        embedding="glm.word_embeddings.weight",
        head=None,
        tied_head=None,  # the network multiplies by the embedding and has no layer for it
        tie="always",
        prefixes=(("glm.", "glm."),),
        infixes=(),
        infix_prefix=None,
        hugging_face_base_prefix="glm.",
        hugging_face_sign=None,
        split_axes=(
            (r"word_embeddings\.weight", ROW),
            (r"(attention\.dense|dense_4h_to_h)\.weight", ROW),
            (r"(query_key_value|dense_h_to_4h)\.(weight|bias)", COLUMN),
        ),
        sections=(("query_key_value", "by head"),),
        residual_outputs=(),
    ),
    network=Network(
        positions="learned",
        bidirectional_prefix=True,
        pretrains_prefix=False,
        prompt_marks=(),
        head_path="glm.transformer.final_layernorm",
        head_is_norm=True,
        head_length_axis=1,
        cache="cache",
        cache_row_axis=0,
        takes_positions=True,
        full_mask=True,
        block_positions=True,
        prefix=PrefixLayers(
            layer=".attention",
            kind="hidden states",
            arguments=(),
            cache="",
            mask="",
            cache_axis=1,
            alibi=False,
            cache_is_last=False,
        ),
        default_lora_targets=(),
        zero_gradient=None,
        zero_gradient_part=None,
    ),
    static_program=StaticProgram(
        layer="glm.transformer.layers.{}.",
        qkv=("attention.query_key_value",),
        out="attention.dense",
        up=("mlp.dense_h_to_4h",),
        down="mlp.dense_4h_to_h",
        norms=("input_layernorm", "post_attention_layernorm"),
        first_norm=None,
        last_norm="glm.transformer.final_layernorm",
        position_tables=(
            "glm.transformer.position_embeddings.weight", "glm.transformer.block_position_embeddings.weight",
        ),
        project_in=None,
        project_out=None,
        activation="gelu",
        rms_norm=False,
        rotary=None,
        rotary_class=None,
        interleaved_qkv=False,
        scaled_by_layer=False,
        residual=None,
        norm_first=None,
        position_rows="block_position_encoding",
        position_offset=0,
    ),
    cpu_operations=CpuOperations(attention_in_blocks=False, activation_keeps=1),
    engines=Engines(transformers=False, paddleformers=False, fastdeploy=False, gguf=None),
    shapes=_shapes,
)  # fmt: skip
