"""OPT (Zhang et al. 2022): learned positions, ReLU, norms before or after attention and MLP."""

from __future__ import annotations

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

_UNUSED_POSITIONS = 2  # rows at the beginning of the table of positions that nothing reads


def _translate(values: dict[str, Any], raw: dict[str, Any], problems: list[str]) -> None:
    rename(values, {"do_layer_norm_before": "normalize_before", "ffn_dim": "intermediate_size"})
    rename(values, {"dropout": "hidden_dropout_prob", "attention_dropout": "attention_probs_dropout_prob"})
    rename(values, {"activation_function": "hidden_act", "init_std": "initializer_range"})
    values["word_embed_proj_dim"] = raw.get("word_embed_proj_dim") or values.get("hidden_size")
    values.pop("layerdrop", None)
    expect(raw, problems, activation_function="relu", hidden_act="relu", layerdrop=(0.0, 0), enable_bias=True)
    expect(raw, problems, layer_norm_elementwise_affine=True, tie_word_embeddings=True)
    if raw.get("_remove_final_layer_norm"):
        problems.append("_remove_final_layer_norm = true (supported: false)")


def _write(config: PretrainedConfig) -> dict[str, Any]:
    return {
        "architectures": ["OPTForCausalLM"],
        "model_type": "opt",
        **same(config, "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"),
        **same(config, "max_position_embeddings", "word_embed_proj_dim"),
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


def _shapes(family: Family, facts: ModelFacts) -> ModelShapes:
    """Return the weights; OPT-350m embeds in fewer dimensions and has no final norm."""
    return decoder_shapes(
        family,
        facts,
        biases=ALL_BIASES,
        position_rows=(facts.max_position_embeddings or 2048) + _UNUSED_POSITIONS,
        embedding_width=facts.raw.get("word_embed_proj_dim"),
        final_norm=bool(facts.raw.get("do_layer_norm_before", facts.raw.get("normalize_before", True))),
    )


OPT = Family(
    name="opt",
    title="OPT",
    aliases=(),
    config_class="paddlenlp.transformers.opt.configuration:OPTConfig",
    model_class="paddlenlp.transformers.opt.modeling:OPTForCausalLM",
    pipeline_class=None,
    patches="paddle_llm.models.patches.opt",
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
        prompt_tuning=True,
        prefix_projection=True,
        packed_prefix=True,
    ),
    config_json=ConfigJson(
        model_types=("opt",),
        identify=lambda raw: "opt",
        known_fields=frozenset({
            "do_layer_norm_before", "ffn_dim", "dropout", "attention_dropout", "activation_function", "activation_dropout",
            "init_std", "word_embed_proj_dim", "layerdrop", "enable_bias", "layer_norm_elementwise_affine",
            "_remove_final_layer_norm",
        }),
        translate=_translate,
        write=_write,
        feed_forward_factor=None,
        key_value_heads=always,
        layers="num_hidden_layers",
        dropout=DropoutKeys(
            hidden=("hidden_dropout_prob",), attention=("attention_probs_dropout_prob",), default_hidden=0.1,
            default_attention=0.0,
        ),
        epsilon=1e-5,  # PaddleNLP's network does not read its configuration
        sequence_length=None,
        attention_window=None,
        code_repository=None,
    ),
    weights=Weights(
        embedding="opt.embeddings.word_embeddings.weight",
        head=None,
        tied_head="lm_head.decoder_weight",
        tie="always",
        prefixes=(
            ("opt.embeddings.word_embeddings.", "model.decoder.embed_tokens."),
            ("opt.embeddings.position_embeddings.", "model.decoder.embed_positions."),
            ("opt.embeddings.", "model.decoder."),
            ("opt.", "model."),
        ),
        infixes=(
            (".norm1.", ".self_attn_layer_norm."),
            (".norm2.", ".final_layer_norm."),
            (".linear1.", ".fc1."),
            (".linear2.", ".fc2."),
        ),
        infix_prefix="model.decoder.",
        hugging_face_base_prefix="model.",
        hugging_face_sign="model.",
        split_axes=(
            (r"word_embeddings\.weight", ROW),
            (r"(out_proj|linear2)\.weight", ROW),
            (r"((q|k|v)_proj|linear1)\.(weight|bias)", COLUMN),
            (r"project_(in|out)\.weight", COLUMN),
        ),
        sections=(),
        residual_outputs=(),
    ),
    network=Network(
        positions="learned",
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
            layer=".self_attn",
            kind="cache",
            arguments=("query", "key", "value", "attn_mask", "use_cache", "cache"),
            cache="cache",
            mask="attn_mask",
            cache_axis=2,
            alibi=False,
            cache_is_last=True,
        ),
        default_lora_targets=("q_proj", "v_proj"),
        # The bias of a key moves all scores of a query alike, which the softmax does not see.
        zero_gradient=("self_attn.k_proj.bias", "self_attn.v_proj.bias"),
        zero_gradient_part=None,
    ),
    static_program=StaticProgram(
        layer="opt.decoder.layers.{}.",
        qkv=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        out="self_attn.out_proj",
        up=("linear1",),
        down="linear2",
        norms=("norm1", "norm2"),
        first_norm=None,
        last_norm="opt.decoder.final_layer_norm",
        position_tables=("opt.embeddings.position_embeddings.weight",),
        project_in="opt.embeddings.project_in.weight",
        project_out="opt.decoder.project_out.weight",
        activation="relu",
        rms_norm=False,
        rotary=None,
        rotary_class=None,
        interleaved_qkv=False,
        scaled_by_layer=False,
        residual=None,
        norm_first="normalize_before",
        position_rows=1,
        position_offset=_UNUSED_POSITIONS,
    ),
    cpu_operations=CpuOperations(attention_in_blocks=False, activation_keeps=0),
    engines=Engines(transformers=True, paddleformers=False, fastdeploy=False, gguf=None),
    shapes=_shapes,
)  # fmt: skip
