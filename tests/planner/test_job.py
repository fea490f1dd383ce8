"""A resolved config becomes the planner's job with the values that training uses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from paddle_llm.config.reader import Resolved, resolve
from paddle_llm.planner.job import Job, job_of

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(CONFIGS.parent)


def read(file: str, world_size: int, *flags: str, entry: str = "pretrain", device: str = "gpu") -> Resolved:
    return resolve([str(CONFIGS / file), *flags], world_size=world_size, entry=entry, device=device)


def job(file: str, world_size: int, *flags: str, entry: str = "pretrain", device: str = "gpu") -> Job:
    return job_of(read(file, world_size, *flags, entry=entry, device=device))


def test_the_batch_is_that_of_training() -> None:
    found = job("pretrain/llama_7b_tp2_sharding4_stage2.json", 8)
    raw = json.loads((CONFIGS / "pretrain/llama_7b_tp2_sharding4_stage2.json").read_text())
    batch = raw["per_device_train_batch_size"] * raw["gradient_accumulation_steps"] * 4
    assert found.global_batch == batch
    assert found.tokens_per_step == batch * raw["max_seq_length"]
    assert hash(found) == hash(job("pretrain/llama_7b_tp2_sharding4_stage2.json", 8))


def test_types_follow_the_mixed_precision_level() -> None:
    file = "pretrain/llama_7b_tp2_sharding4_stage2.json"
    o2 = job(file, 8).precision
    assert (o2.weights, o2.compute, o2.gradients, o2.master_weights) == ("bfloat16", "bfloat16", "float32", True)
    o1 = job(file, 8, "--fp16_opt_level", "O1", "--amp_master_grad", "0").precision
    assert (o1.weights, o1.compute, o1.gradients, o1.master_weights) == ("float32", "bfloat16", "float32", False)
    low = job(file, 8, "--amp_master_grad", "0").precision
    assert low.gradients == "bfloat16"
    on_cpu = job(file, 8, device="cpu")
    assert on_cpu.precision.compute == "float32" and not on_cpu.precision.master_weights
    assert on_cpu.kernels.device == "cpu" and not on_cpu.kernels.flash_attention and on_cpu.kernels.fused_rms_norm


def test_recompute_is_what_the_network_follows() -> None:
    file = "pretrain/llama_2_13b_pp2_sharding2_stage2.json"
    kept = job(file, 4, "--recompute_granularity", "core_attn", "--no_recompute_layers", "3").recompute
    assert kept.part == "core_attn" and kept.kept_layers == {3}
    bloom = job("finetune/bloom_7b1_full.json", 8, "--recompute_granularity", "core_attn", entry="finetune").recompute
    assert bloom.part == "full", "the only part that BLOOM recomputes"
    assert job(file, 4, "--recompute", "0").recompute.part == "none"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("finetune/*.json")), ids=lambda path: path.stem)
def test_every_method_of_fine_tuning_is_recognised(path: Path) -> None:
    raw = json.loads(path.read_text())
    world_size = 1
    for kind in ("data", "sharding", "tensor", "pipeline"):
        world_size *= int(raw.get(f"{kind}_parallel_degree", 1))
    found = job(f"finetune/{path.name}", world_size, entry="finetune")
    assert found.method.name == path.stem.rpartition("_")[2]
    assert found.seq_length == (raw["max_seq_length"] if raw.get("zero_padding") else raw["max_length"])


def test_dropout_is_that_of_the_model_unless_it_is_given() -> None:
    file = next(CONFIGS.glob("finetune/opt*_lora.json"))
    options = {"entry": "finetune"}
    assert job(f"finetune/{file.name}", 1, **options).hidden_dropout == 0.1
    assert job(f"finetune/{file.name}", 1, "--hidden_dropout_prob", "0.2", **options).hidden_dropout == 0.2
    assert job("pretrain/llama_7b_tp2_sharding4_stage2.json", 8).hidden_dropout == 0.0


def test_a_model_of_unknown_shape_is_refused() -> None:
    unknown = replace(read("pretrain/llama_7b_tp2_sharding4_stage2.json", 8), facts=None)
    with pytest.raises(ValueError, match="the shape of .* is not known"):
        job_of(unknown)
