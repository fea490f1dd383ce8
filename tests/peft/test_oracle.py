"""Each method in the layouts that it is offered with, proven equal to one process; what is frozen stays as it was, too."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from paddle_llm.config.layout import Layout
from paddle_llm.peft.method import method_of
from paddle_llm.peft.prompt import with_prompt
from paddle_llm.rehearse.oracle import prove, run_case
from tests.rehearse.cases import SEQUENCE, make_case
from tests.rehearse.proving import Prover

TP = Layout(tensor=2)
SP = Layout(tensor=2, sequence_parallel=True)
STAGE2 = Layout(sharding=2, sharding_stage=2)
STAGE3 = Layout(sharding=2, sharding_stage=3)
PP = Layout(pipeline=2)
# Tensors that begin as zeros show Adam's rounding unmixed: where gradients are small, its epsilon must be above them.
METHODS: dict[str, dict[str, Any]] = {
    "lora": {"lora": True},
    "prefix": {"prefix_tuning": True, "num_prefix_tokens": 4},
    "projection": {"prefix_tuning": True, "num_prefix_tokens": 4, "prefix_projection": True},
    "adapter": {"adapter": True, "adapter_size": 4, "adam_epsilon": 1e-2},
    "freeze": {"freeze_layers": 1},
    "prompt": {"prompt_tuning": True, "num_prompt_tokens": 4},
    "lora with parts": {"lora": True, "rslora": True, "lora_plus_scale": 4.0, "modules_to_save": ["lm_head", "norm"]},
    "adalora": {
        "adalora": True,
        "lora_rank": 2,
        "adalora_init_rank": 4,
        "max_steps": 4,
        "adalora_warmup_ratio": 0.5,
        "adalora_final_ratio": 0.25,
        "adalora_budget_interval": 1,
        "adam_epsilon": 1e-2,
    },
}
SHARED_HEADS = {"num_key_value_heads": 1}  # fewer than tensor-parallel ranks: both have it
LLAMA = [(name, layout) for name in ("lora", "prefix", "adapter", "freeze") for layout in (TP, STAGE2, PP)]
MORE: list[tuple[str, Layout, str, dict[str, Any]]] = [
    ("lora", TP, "llama", SHARED_HEADS),
    ("lora", SP, "llama", SHARED_HEADS),
    ("prefix", TP, "llama", SHARED_HEADS),
    ("projection", TP, "llama", {"num_key_value_heads": 2}),
    ("adapter", SP, "llama", {}),
    ("prompt", SP, "llama", {}),
    ("adalora", TP, "llama", {}),
    ("lora", TP, "chatglm_v2", {}),
    ("lora", TP, "bloom", {}),
]
SLOW: list[tuple[str, Layout, str, dict[str, Any]]] = [
    ("adalora", STAGE2, "llama", {}),
    ("lora with parts", STAGE3, "llama", {}),
    ("prefix", TP, "chatglm_v2", {}),
    ("prefix", PP, "bloom", {}),
    ("lora", TP, "glm", {}),
    ("adapter", TP, "opt", {}),
    ("prefix", TP, "qwen2", {}),
]


@pytest.fixture(scope="module")
def prover() -> Prover:
    return Prover()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


def case_of(folder, name, layout, family="llama", model=None, **settings):
    layers = (
        "n_layer" if family == "bloom" else "num_layers" if family in ("chatglm_v2", "glm") else "num_hidden_layers"
    )
    model = {layers: 2, **(model or {})}
    settings = {"global_batch": 4, "evaluation": 3, "ignored_labels": True, **METHODS[name], **settings}
    case = make_case(folder, layout, family=family, model=model, name=f"{name} {family} {layout}", **settings)
    if name != "prompt":
        return case
    method = method_of(case.config)
    lengthened = {
        part: [with_prompt(sample, method) for sample in getattr(case, part)] for part in ("train", "evaluation")
    }
    # With sequence parallelism the networks are built for one length.
    config = case.config.model_copy(update={"max_seq_length": SEQUENCE + method.num_prompt_tokens})
    return replace(case, config=config, **lengthened)


@pytest.mark.parametrize(("name", "layout"), LLAMA, ids=str)
def test_a_method_in_a_layout_is_one_process(folder, prover, name, layout):
    verdict = prover(case_of(folder, name, layout))
    assert verdict.passed, verdict.failures[:5]


@pytest.mark.parametrize(
    ("name", "layout", "family", "model"),
    [*MORE, *(pytest.param(*row, marks=pytest.mark.slow) for row in SLOW)],
    ids=str,
)
def test_more_methods_and_families(folder, prover, name, layout, family, model):
    verdict = prover(case_of(folder, name, layout, family, model))
    assert verdict.passed, verdict.failures[:5]


def test_with_recompute(folder):
    verdict = prove(case_of(folder, "lora", PP, recompute=True))
    assert verdict.passed, verdict.failures[:5]


def test_all_degrees_at_once(folder):
    verdict = prove(case_of(folder, "lora", Layout(sharding=2, tensor=2, pipeline=2, sharding_stage=2)))
    assert verdict.passed, verdict.failures[:5]


def test_frozen_weights_stay_what_they_were(folder):
    """On every rank, to the bit; and only what is trained has gradients and moments."""
    for record in run_case(case_of(folder, "lora", STAGE2)):
        first, last = record.steps[1].tensors, record.steps[3].tensors
        for name, part in first["weight"].items():
            trained = ".lora_" in name
            # One process's reference is compared by the oracle; here a rank is with itself.
            assert np.array_equal(part.values, last["weight"][name].values) != trained, name
        for quantity in ("gradient", "moment1", "moment2"):
            assert {name for name in last[quantity] if np.any(last[quantity][name].values)} <= {
                name for name in first["weight"] if ".lora_" in name
            }
