"""What one GPU changes: 16 bits, kernels, memory in the host. Each against the same training without it.

Never run: no GPU with a GPU build of Paddle was at hand when this was written. The limits are expectations, to be
replaced by measured ones: bfloat16 rounds to 8 bits (2^-9 = 0.2%), which a mean over tokens averages; float32 without
TF32 differs by the order of sums alone, as on a CPU.

    python -m pytest tests/gpu -rs
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paddle_llm.config.layout import Layout
from paddle_llm.parallel.process.determinism import DETERMINISTIC
from paddle_llm.rehearse.case import Case
from paddle_llm.rehearse.compare import FIRST_STEP_LIMITS, compare, rounding_floor
from paddle_llm.rehearse.oracle import run_case
from paddle_llm.rehearse.ranks import run_ranks
from paddle_llm.rehearse.record import RankRecord
from tests.rehearse.cases import make_case

CURVE_STEPS = 30
BF16_LIMIT = 0.01  # of each loss
DEVICE, HOST = "Place(gpu:0)", "Place(gpu_pinned)"


def case_on_gpu(folder: Path, layout: Layout | None = None, **settings: Any) -> Case:
    return make_case(folder, layout or Layout(), **{"device": "gpu", **settings})


def with_settings(case: Case, **settings: Any) -> Case:
    return replace(case, config=case.config.model_copy(update=settings))


def run(case: Case) -> RankRecord:
    (record,) = run_case(case, env=DETERMINISTIC)
    return record


def losses(record: RankRecord) -> np.ndarray:
    """[steps] training losses."""
    return np.array([step.scalars["loss"] for _, step in sorted(record.steps.items())])


def assert_equal(one: Case, other: Case) -> None:
    """Every loss, norm, gradient, weight and moment, within what another order of sums does."""
    record = run(one)
    swapped = one.rounded_differently()
    assert swapped is not None
    found = compare(record, [run(other)], rounding_floor(record, run(swapped)), FIRST_STEP_LIMITS)
    failures = [difference for difference in found if not difference.passed]
    assert found and not failures, failures[0]


@pytest.fixture
def curve_case(tmp_path: Path) -> Case:
    """Thirty steps over the same eight samples, which it learns by heart."""
    settings = {"max_steps": CURVE_STEPS, "learning_rate": 3e-3, "adam_epsilon": 1e-8}
    case = case_on_gpu(tmp_path, evaluation=0, global_batch=8, **settings)
    return replace(case, train=case.train[:8] * CURVE_STEPS)


@pytest.mark.parametrize("level", ["O1", "O2"])
def test_the_curve_of_bf16_is_that_of_fp32(curve_case: Case, level: str) -> None:
    plain = losses(run(curve_case))
    half = with_settings(curve_case, bf16=True, fp16_opt_level=level, amp_master_grad=level == "O2")
    found = losses(run(half))
    assert len(found) == CURVE_STEPS and found[-1] < found[0] - 0.5
    assert not np.array_equal(found, plain), "16 bits leave no trace: they were not used"
    np.testing.assert_allclose(found, plain, rtol=BF16_LIMIT)


def test_the_curve_of_flash_attention_is_that_of_plain_attention(curve_case: Case) -> None:
    """The kernels know 16 bits only."""
    plain = with_settings(curve_case, bf16=True, fp16_opt_level="O2", amp_master_grad=True)
    found = losses(run(with_settings(plain, use_flash_attention=True)))
    expected = losses(run(plain))
    assert not np.array_equal(found, expected), "flash attention leaves no trace: it was not used"
    np.testing.assert_allclose(found, expected, rtol=BF16_LIMIT)


@pytest.mark.parametrize("granularity", ["full", "full_attn", "core_attn"])
def test_recompute_changes_nothing(tmp_path: Path, granularity: str) -> None:
    case = case_on_gpu(tmp_path)
    assert_equal(case, with_settings(case, recompute=True, recompute_granularity=granularity))


def test_four_micro_batches_of_one_are_one_of_four(tmp_path: Path) -> None:
    case = case_on_gpu(tmp_path, global_batch=4)
    assert case.config.gradient_accumulation_steps == 4
    assert_equal(case, with_settings(case, per_device_train_batch_size=4, gradient_accumulation_steps=1))


def test_optimizer_states_in_host_memory_change_nothing(tmp_path: Path) -> None:
    case = case_on_gpu(tmp_path)
    assert_equal(case, with_settings(case, offload_optim=True))


def places_of_states(case: Case) -> dict[str, set[str]]:
    """Where the moments lie between two steps; on a rank of its own."""
    from paddle_llm.training.run import start_job

    start_job("gpu", case.layout.world_size)
    from paddle_llm.rehearse.oracle import trainer_of
    from paddle_llm.training.grad_norm import innermost

    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(case, folder)
        trainer.train()
        states = innermost(trainer.optimizer)._accumulators
        return {name: {str(held.place) for held in states[name].values()} for name in ("moment1", "moment2")}


@pytest.mark.parametrize(("offload", "place"), [(False, DEVICE), (True, HOST)])
def test_offloaded_states_are_in_host_memory(tmp_path: Path, offload: bool, place: str) -> None:
    (found,) = run_ranks(places_of_states, 1, case_on_gpu(tmp_path, offload_optim=offload), device="gpu")
    assert found == {"moment1": {place}, "moment2": {place}}
