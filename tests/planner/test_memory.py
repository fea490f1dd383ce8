"""The planned memory of a rank: states by hand, activations against trainings, and the order of micro-batches."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from paddle_llm.config.layout import Layout
from paddle_llm.config.local_files.model_folder import read_model_facts
from paddle_llm.planner.flops import parameter_count
from paddle_llm.planner.job import Job, Kernels, Method, Precision, Recompute
from paddle_llm.planner.memory import schedule
from paddle_llm.planner.memory.plan import fullest_rank, plan_memory, states_of
from paddle_llm.planner.memory.schedule import activation_peaks, steps_of

ROOT = Path(__file__).parents[2]
BF16 = Precision(weights="bfloat16", compute="bfloat16", gradients="float32", master_weights=True)


def job(name: str = "llama-7b", **fields) -> Job:
    facts = read_model_facts(ROOT / "configs" / "models" / name)
    values = {"layout": Layout(), "seq_length": 2048, "precision": BF16, "recompute": Recompute(part="full")}
    return Job(model=facts, **{**values, **fields})


def test_states_in_one_process() -> None:
    """bf16 weights, fp32 gradients, fp32 master weights and two moments: 2 + 4 + 4 + 8 bytes (Rajbhandari et al. 2020)."""
    plain, n = job(), parameter_count(job().model)
    states = states_of(plain, 0)
    assert (states.weights, states.gradients, states.master_weights, states.moments) == (2 * n, 4 * n, 4 * n, 8 * n)
    fp32 = states_of(replace(plain, precision=Precision()), 0)
    assert (fp32.weights, fp32.gradients, fp32.master_weights, fp32.moments) == (4 * n, 4 * n, 0, 8 * n)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_states_of_the_sharding_stages(stage: int) -> None:
    whole, n = job(layout=Layout(sharding=8, sharding_stage=stage)), parameter_count(job().model)
    states = states_of(whole, 0)
    assert states.moments == pytest.approx(8 * n / 8, rel=0.02)
    assert states.gradients == pytest.approx(4 * n / (8 if stage >= 2 else 1), rel=0.02)
    assert states.weights == pytest.approx(2 * n / (8 if stage == 3 else 1), rel=0.02)
    assert (states.gathered > 0) == (stage == 3)


def test_frozen_weights_have_no_gradients_and_states() -> None:
    lora = job(method=Method(name="lora", rank=8))
    trained = 8 * 32 * (4 * 2 * 4096 + 3 * (4096 + 11008))
    states = states_of(lora, 0)
    assert states.weights == 2 * (parameter_count(lora.model) + trained)
    assert (states.gradients, states.moments) == (4 * trained, 8 * trained)


def test_recompute_keeps_one_input_per_layer() -> None:
    """2 s b h per layer (Korthikanti et al. 2022), and without recompute 33 to 36 s b h per layer of a LLaMA."""
    recomputed, hidden = job(micro_batch=2), 2 * 2 * 2048 * 4096
    assert activation_peaks(recomputed, 0).kept == pytest.approx(33 * hidden, rel=0.01), "and the last output"
    everything = replace(recomputed, recompute=Recompute(), kernels=Kernels(fused_rms_norm=True, fused_rope=True))
    per_layer = (activation_peaks(everything, 0).kept - hidden) / 32 / (2 * 2048 * 4096)
    assert 30 < per_layer < 37


def test_parts_of_a_layer_are_recomputed() -> None:
    kept = {
        part: activation_peaks(job(recompute=Recompute(part=part)), 0).kept
        for part in ("none", "core_attn", "full_attn", "full")
    }
    assert kept["none"] > kept["core_attn"] > kept["full_attn"] > kept["full"]
    some = job(recompute=Recompute(part="full", kept_layers=frozenset((0, 1))))
    one = (kept["none"] - kept["full"]) / 32
    assert activation_peaks(some, 0).kept == pytest.approx(kept["full"] + 2 * one, rel=0.01)


def test_plain_attention_keeps_the_scores() -> None:
    plain = job(recompute=Recompute(), kernels=Kernels(flash_attention=False))
    flash = replace(plain, kernels=Kernels())
    scores = 32 * 2048 * 2048  # numbers per layer
    added = (activation_peaks(plain, 0).kept - activation_peaks(flash, 0).kept) / 32
    assert added > 5.9 * scores, "the softmax in fp32 and its cast"


@pytest.mark.parametrize("layout", [Layout(), Layout(pipeline=2), Layout(tensor=2, sequence_parallel=True)], ids=str)
@pytest.mark.parametrize("part", ["none", "full"])
def test_many_layers_are_extrapolated_exactly(layout: Layout, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = job("llama-2-13b", layout=layout, recompute=Recompute(part=part), accumulation=4)
    found = [activation_peaks(deep, stage) for stage in range(layout.pipeline)]
    monkeypatch.setattr(schedule, "_EXACT_LAYERS", 1000)
    exact = [activation_peaks(deep, stage) for stage in range(layout.pipeline)]
    for one, other in zip(found, exact, strict=True):
        assert vars(one) == pytest.approx(vars(other), rel=1e-3)


def test_the_order_of_micro_batches() -> None:
    """1F1B: the first of p stages holds p micro-batches, the last one (Narayanan et al. 2021)."""
    four = job(layout=Layout(pipeline=4), accumulation=16)
    for stage in range(4):
        held = most = 0
        for kind, _ in steps_of(stage, four):
            held += 1 if kind == "forward" else -1
            most = max(most, held)
        assert most == 4 - stage
    few = [kind for kind, _ in steps_of(0, replace(four, accumulation=2))]
    assert few == ["forward", "forward", "backward", "backward"]
    interleaved = replace(four, layout=Layout(pipeline=4, virtual_stages=2))
    begin = [chunk for _, chunk in steps_of(0, interleaved)][:8]
    assert begin == [0, 0, 0, 0, 1, 1, 1, 1]


def test_the_first_stage_of_a_pipeline_needs_most_activations() -> None:
    stages = plan_memory(job("llama-2-70b", layout=Layout(tensor=8, pipeline=4), accumulation=16, seq_length=4096))
    assert stages[0].activations > stages[1].activations > stages[2].activations
    assert fullest_rank(job("llama-2-70b", layout=Layout(tensor=8, pipeline=4), accumulation=16)).stage in (0, 3)


@pytest.mark.parametrize("name", ["recompute attention", "lora"])
def test_the_peak_of_a_training_is_the_planned_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paddle's host allocator counts what a training on a CPU holds; benchmarks/results/planner.md has more of them."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import planner_cases

    monkeypatch.setitem(sys.modules, "planner_cases", planner_cases)
    case = next(case for case in planner_cases.cases() if case.name == name)
    (rank,) = planner_cases.measure(case)
    planned = fullest_rank(planner_cases.planned_job(case))
    assert planned.total == pytest.approx(rank["peak"], rel=0.005)
