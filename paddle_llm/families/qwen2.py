"""Qwen2 and Qwen2.5 (Yang et al. 2024): LLaMA with biases on query, key and value."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from paddle_llm.families import decoder
from paddle_llm.families.config_keys import expect, expect_head_width, same
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

_DEFAULT_KEY_VALUE_HEADS = 32  # of Qwen2Config, in transformers and in PaddleNLP


def _translate(values: dict[str, Any], raw: dict[str, Any], problems: list[str]) -> None:
    expect(raw, problems, hidden_act=("silu", "swish"), use_sliding_window=False, attention_dropout=(0.0, 0))
    if "num_key_value_heads" not in raw and values.get("num_attention_heads") != _DEFAULT_KEY_VALUE_HEADS:
        problems.append(
            f"num_key_value_heads is missing, which transformers reads as {_DEFAULT_KEY_VALUE_HEADS} (add the number of the model)"
        )
    kinds = raw.get("layer_types") or []
    windowed = sorted({str(one) for one in (kinds if isinstance(kinds, list) else [kinds])} - {"full_attention"})
    if windowed:
        problems.append(f"layer_types with {', '.join(windowed)} (supported: 'full_attention')")
    expect_head_width(values, raw, problems)
    translate_rope(values, raw, problems)
    if values.pop("rope_scaling", None) or values.pop("rope_scaling_type", None):
        problems.append("scaled RoPE, which PaddleNLP's Qwen2 ignores")


def _write(config: PretrainedConfig) -> dict[str, Any]:
    return {
        **decoder.decoder_config(config, "Qwen2ForCausalLM", "qwen2"),
        "use_sliding_window": False,
        **same(config, "sliding_window", "max_window_layers"),
    }


def _shapes(family: Family, facts: ModelFacts) -> ModelShapes:
    return decoder_shapes(family, facts, biases=frozenset(("qkv",)))


QWEN2 = Family(
    name="qwen2",
    title="Qwen2",
    aliases=(),
    config_class="paddlenlp.transformers.qwen2.configuration:Qwen2Config",
    model_class="paddlenlp.transformers.qwen2.modeling:Qwen2ForCausalLM",
    pipeline_class="paddlenlp.transformers.qwen2.modeling_pp:Qwen2ForCausalLMPipe",
    patches="paddle_llm.models.patches.qwen2",
    capabilities=Capabilities(
        sequence_parallel=True,
        recompute_granularities=ALL_GRANULARITIES,
        recompute_skips_layers="unless full in a pipeline",
        flash_attention=True,
        fused_rms_norm=True,
        fused_rope=True,
        fused_matrices=False,
        replicates_key_value_heads=False,
        needs_divided_hidden_size=False,
        prompt_tuning=True,
        prefix_projection=True,
        packed_prefix=True,
    ),
    config_json=ConfigJson(
        model_types=("qwen2",),
        identify=lambda raw: "qwen2",
        known_fields=frozenset({
            "hidden_act", "head_dim", "rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor", "layer_types",
            "use_mrope", "sliding_window", "use_sliding_window", "max_window_layers", "attention_dropout",
        }),
        translate=_translate,
        write=_write,
        feed_forward_factor=None,
        key_value_heads=decoder.always,
        layers="num_hidden_layers",
        dropout=None,
        epsilon="rms_norm_eps",
        sequence_length="seq_length",
        attention_window=None,  # the published models do not use their sliding_window
        code_repository=None,
    ),
    weights=Weights(
        embedding="qwen2.embed_tokens.weight",
        head="lm_head.weight",
        tied_head="lm_head.weight",
        tie="configured",
        prefixes=(("qwen2.", "model."), ("lm_head.", "lm_head.")),
        infixes=(),
        infix_prefix=None,
        hugging_face_base_prefix="model.",
        hugging_face_sign="model.",
        split_axes=(
            *decoder.EMBEDDING_AND_HEAD_AXES,
            *decoder.OUTPUT_AXES,
            (r"(q|k|v)_proj\.(weight|bias)", COLUMN),
            (r"(gate|up)_proj\.weight", COLUMN),
        ),
        sections=(),
        residual_outputs=decoder.RESIDUAL_OUTPUTS,
    ),
    network=decoder.NETWORK,
    static_program=decoder.static_program("qwen2", "paddlenlp.transformers.qwen2.modeling:Qwen2Attention"),
    # PaddleFormers asks for paddlefleet, which runs on GPUs only.
    cpu_operations=CpuOperations(attention_in_blocks=False, activation_keeps=2),
    engines=Engines(transformers=True, paddleformers=False, fastdeploy=True, gguf=Gguf(architecture="qwen2", interleaves_rotary=False)),
    shapes=_shapes,
)  # fmt: skip
