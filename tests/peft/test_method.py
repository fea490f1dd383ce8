"""Settings of methods: from a configuration, with patterns, and their supported combinations. Does not import Paddle."""

from __future__ import annotations

import pytest

from paddle_llm.config.layout import Layout
from paddle_llm.config.methods import CHOICES, METHODS, any_pattern_matches, method_problems
from paddle_llm.config.run_config import RunConfig
from paddle_llm.core.errors import UserError
from paddle_llm.peft.method import Method, method_of


@pytest.mark.parametrize(
    ("fields", "method"),
    [
        ({}, "full"),
        ({"lora": True}, "lora"),
        ({"prefix_tuning": True}, "prefix"),
        ({"adapter": True}, "adapter"),
        ({"freeze_layers": 2}, "freeze"),
        ({"trainable_modules": ["lm_head"]}, "freeze"),
        ({"freeze_layers": 2, "trainable_modules": ["lm_head"]}, "freeze"),
        ({"adalora": True}, "adalora"),
        ({"prompt_tuning": True}, "prompt"),
    ],
)
def test_a_configuration_selects_one_method(fields, method):
    assert method_of(RunConfig(**fields)).name == method


def test_settings_reach_the_method():
    config = RunConfig(
        lora=True, lora_rank=16, lora_alpha=8, lora_dropout=0.1, lora_target_modules=["q_proj"], rslora=True
    )
    method = method_of(config)
    assert (method.rank, method.alpha, method.dropout, method.targets) == (16, 8, 0.1, ("q_proj",))
    assert method.scaling == pytest.approx(8 / 4)
    assert method_of(RunConfig(lora=True, lora_rank=4)).scaling == pytest.approx(2)
    assert method_of(RunConfig(adalora=True, lora_rank=5)).initial_rank == 8
    assert Method.from_dict(method.as_dict()) == method


def test_two_methods_at_once_are_refused():
    with pytest.raises(UserError, match="--lora and --adapter: select only one"):
        method_of(RunConfig(lora=True, adapter=True))


def test_every_choice_is_a_field_and_a_method():
    assert set(CHOICES) <= set(RunConfig.model_fields)
    assert set(CHOICES.values()) | {"full"} == set(METHODS)


@pytest.mark.parametrize(
    ("pattern", "matched"),
    [
        ("q_proj", True),
        ("self_attn.q_proj", True),
        (r".*layers\.1\..*proj", True),
        ("proj", False),
        ("attn.q_proj", False),
        ("llama", False),
    ],
)
def test_patterns(pattern, matched):
    assert any_pattern_matches((pattern,), "llama.layers.1.self_attn.q_proj") is matched


@pytest.mark.parametrize("method", ["full", "lora", "prefix", "adapter", "freeze"])
def test_methods_that_support_every_layout(method):
    layout = Layout(2, 2, 2, 2, sharding_stage=2)
    assert not list(method_problems(method, layout, "llama"))


@pytest.mark.parametrize(
    ("method", "layout", "family", "others", "message"),
    [
        (
            "prompt",
            Layout(pipeline=2),
            None,
            {},
            "one of the methods that support a pipeline: full, lora, prefix, adapter, freeze",
        ),
        ("adalora", Layout(sharding=2, sharding_stage=3), None, {}, "Use --sharding stage2"),
        ("prompt", Layout(), "llama", {"packed": True}, "Drop --zero_padding"),
        ("prompt", Layout(), "chatglm", {}, "not supported for ChatGLM-6B"),
        ("prefix", Layout(), "glm", {"prefix_projection": True}, "--prefix_projection is not supported for GLM"),
        ("prefix", Layout(), "bloom", {"packed": True}, "prefix tuning with --zero_padding is not supported for BLOOM"),
    ],
)
def test_unsupported_combinations_are_refused_with_advice(method, layout, family, others, message):
    (problem,) = method_problems(method, layout, family, **others)
    assert message in problem
