"""Parameters, FLOPs per token and MFU against figures computed by hand, and against PaddleNLP's own models."""

from __future__ import annotations

from pathlib import Path

import pytest

from paddle_llm.config.local_files.model_folder import read_model_facts
from paddle_llm.core.errors import UserError
from paddle_llm.families.facts import ModelFacts
from paddle_llm.planner.flops import count_parameters, flops_per_token, mfu, parameter_count, peak_flops
from tests.helpers.models.tiny import (
    write_bloom,
    write_chatglm,
    write_chatglm2,
    write_glm,
    write_llama,
    write_mistral,
    write_opt,
    write_qwen2,
)

MODELS = Path(__file__).parents[2] / "configs" / "models"

# Numbers of elements, computed by hand from the published shapes; for published models equal to the sum over the released
# weights.
PUBLISHED = {
    "llama-7b": 6_738_415_616,
    "llama-13b": 13_015_864_320,
    "llama-65b": 65_285_660_672,
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-2-70b": 68_976_648_192,
    "meta-llama-3-8b": 8_030_261_248,
    "meta-llama-3-70b": 70_553_706_496,
    "chatglm-6b": 6_173_286_400,
    "chatglm2-6b": 6_243_584_000,
    "chatglm3-6b": 6_243_584_000,
    "bloom-7b1": 7_069_016_064,
}


def facts_of(name: str) -> ModelFacts:
    return read_model_facts(MODELS / name)


@pytest.mark.parametrize(("name", "expected"), PUBLISHED.items())
def test_parameters_of_public_models_are_exact(name: str, expected: int) -> None:
    assert parameter_count(facts_of(name)) == expected


@pytest.mark.parametrize(
    ("write", "class_name"),
    [
        (write_llama, "LlamaForCausalLM"),
        (lambda folder: write_llama(folder, num_key_value_heads=2, tie_word_embeddings=True), "LlamaForCausalLM"),
        (write_chatglm, "ChatGLMForCausalLM"),
        (write_chatglm2, "ChatGLMv2ForCausalLM"),
        (write_bloom, "BloomForCausalLM"),
        (write_glm, "GLMForConditionalGeneration"),
        (lambda folder: write_glm(folder, block_position_encoding=False), "GLMForConditionalGeneration"),
        (lambda folder: write_qwen2(folder, num_key_value_heads=2), "Qwen2ForCausalLM"),
        (write_mistral, "MistralForCausalLM"),
    ],
    ids=["llama", "llama-gqa-tied", "chatglm", "chatglm2", "bloom", "glm", "glm-one-position", "qwen2", "mistral"],
)
def test_parameters_equal_those_that_paddlenlp_builds(tmp_path: Path, write, class_name: str) -> None:
    import paddlenlp.transformers as zoo

    write(tmp_path)
    model_class = getattr(zoo, class_name)
    model = model_class(model_class.config_class.from_pretrained(str(tmp_path)))
    distinct = {id(parameter): parameter for parameter in model.parameters()}
    assert parameter_count(read_model_facts(tmp_path)) == sum(int(p.size) for p in distinct.values())


@pytest.mark.parametrize("overrides", [{}, {"word_embed_proj_dim": 32, "do_layer_norm_before": False}])
def test_parameters_of_opt_are_those_of_the_network_with_its_head_tied(tmp_path: Path, overrides) -> None:
    from tests.helpers.models.networks import build, weights

    folder = write_opt(tmp_path, **overrides)
    built = weights(build(folder), "opt")
    assert parameter_count(read_model_facts(folder)) == sum(value.size for value in built.values())


# 6 * (N - lookups) + 12 * L * h * s, computed by hand.
@pytest.mark.parametrize(
    ("name", "seq_length", "expected"),
    [
        ("llama-7b", 2048, 6 * (6_738_415_616 - 32000 * 4096) + 12 * 32 * 4096 * 2048),
        ("llama-2-70b", 4096, 6 * (68_976_648_192 - 32000 * 8192) + 12 * 80 * 8192 * 4096),
        ("meta-llama-3-8b", 8192, 6 * (8_030_261_248 - 128256 * 4096) + 12 * 32 * 4096 * 8192),
        ("chatglm2-6b", 2048, 6 * (6_243_584_000 - 65024 * 4096) + 12 * 28 * 4096 * 2048),
        ("chatglm-6b", 2048, 6 * 6_173_286_400 + 12 * 28 * 4096 * 2048),  # tied: the table is the head's matmul
        ("bloom-7b1", 2048, 6 * 7_069_016_064 + 12 * 30 * 4096 * 2048),
    ],
)
def test_flops_per_token_equal_a_computation_by_hand(name: str, seq_length: int, expected: float) -> None:
    assert flops_per_token(facts_of(name), seq_length) == pytest.approx(expected, rel=1e-12)


def test_flops_agree_with_the_formula_of_korthikanti_for_a_gpt_shape() -> None:
    """72 B L s h^2 (1 + s/6h + v/12hL) per iteration (arXiv:2205.05198, appendix A), without biases and norms."""
    facts, seq_length = facts_of("bloom-7b1"), 2048
    h, layers, vocab = 4096, 30, 250880
    per_token = 72 * layers * h**2 * (1 + seq_length / (6 * h) + vocab / (12 * h * layers))
    assert flops_per_token(facts, seq_length) == pytest.approx(per_token, rel=5e-4)


def test_grouped_queries_save_weights_but_no_attention_flops() -> None:
    grouped, full = facts_of("llama-2-70b"), facts_of("llama-65b")
    assert grouped.num_key_value_heads == 8
    at_1, at_2 = flops_per_token(grouped, 1000), flops_per_token(grouped, 2000)
    assert at_2 - at_1 == flops_per_token(full, 2000) - flops_per_token(full, 1000)  # same L and h
    key_value = 2 * 8192 * 8 * 128
    layer = count_parameters(grouped).layers / 80
    assert layer == 2 * 8192**2 + key_value + 3 * 8192 * 28672 + 2 * 8192


def test_an_unknown_family_is_refused() -> None:
    facts = facts_of("llama-7b")
    strange = ModelFacts(**{**facts.__dict__, "model_type": "mamba"})
    with pytest.raises(UserError, match="mamba.*llama"):
        flops_per_token(strange, 2048)


@pytest.mark.parametrize(
    ("device", "dtype", "tflops"),
    [
        ("NVIDIA A100-SXM4-80GB", "bfloat16", 312),
        ("NVIDIA A100-PCIE-40GB", "fp32", 156),  # TF32
        ("NVIDIA A800-SXM4-80GB", "bf16", 312),
        ("NVIDIA H100 80GB HBM3", "bfloat16", 989.5),
        ("NVIDIA H100 PCIe", "bfloat16", 756),
        ("NVIDIA H100 NVL", "bfloat16", 835),
        ("NVIDIA H200", "bfloat16", 989.5),
        ("NVIDIA H800", "float16", 989.5),
        ("NVIDIA H20", "bfloat16", 148),
        ("Tesla V100-SXM2-32GB", "float16", 125),
        ("NVIDIA GeForce RTX 4090", "bfloat16", 165.2),
        ("NVIDIA L20", "bfloat16", 119.5),
        ("NVIDIA A10", "bfloat16", 125),
    ],
)
def test_the_peak_is_found_by_the_name_of_the_device(device: str, dtype: str, tflops: float) -> None:
    assert peak_flops(device, dtype) == tflops * 1e12


@pytest.mark.parametrize(
    ("device", "dtype"),
    [
        ("cpu", "float32"),
        ("AMD EPYC 9654 96-Core Processor", "float32"),
        ("NVIDIA A10G", "bfloat16"),  # another card than A10
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "bfloat16"),
        ("NVIDIA GeForce RTX 4090 D", "bfloat16"),
        ("NVIDIA A100-SXM4-80GB MIG 3g.40gb", "bfloat16"),
        ("Tesla V100-SXM2-32GB", "bfloat16"),  # it does not support bfloat16
        ("NVIDIA H200", "float8"),
    ],
)
def test_the_peak_of_an_unknown_device_or_type_is_none(device: str, dtype: str) -> None:
    assert peak_flops(device, dtype) is None


def test_mfu_equals_a_computation_by_hand() -> None:
    facts = facts_of("llama-7b")
    # 6 * 6607343616 + 3221225472 = 42865287168 FLOPs per token; 3640 tokens/s need half of an A100's 312e12.
    needed, peak = flops_per_token(facts, 2048), peak_flops("NVIDIA A100-SXM4-80GB", "bfloat16")
    share = mfu(needed, 156e12 / 42_865_287_168, peak)
    assert share == pytest.approx(0.5, rel=1e-12)
    assert mfu(needed, 1000.0, peak_flops("cpu", "float32")) is None
    assert mfu(None, 1000.0, peak) is None
