"""Features of one GPU: 16 bits, kernels, host memory. Each is compared with the same training without it.

These tests have not been run on a GPU yet: none with a GPU build of Paddle was available. The limits are estimates and have to be
replaced by measured ones. float32 without TF32 differs only by the order of sums, as on a CPU. `make test-gpu` runs these tests.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paddle_llm.families import FAMILIES
from paddle_llm.rehearse.case import Case
from paddle_llm.rehearse.compare import FIRST_STEP_LIMITS, compare, rounding_floor
from paddle_llm.rehearse.oracle import run_case
from paddle_llm.rehearse.ranks import run_ranks
from paddle_llm.rehearse.record import RankRecord
from tests.gpu.on_ranks import Trained, state_places
from tests.gpu.trainings import (
    BF16,
    DETERMINISTIC,
    FP16,
    HALF_LIMIT,
    STATE_PLACES,
    assert_close,
    case_on,
    family_case,
    one,
    with_settings,
)
from tests.rehearse.cases import WRITERS

CURVE_STEPS = {"cpu": 3, "gpu": 30}
LEVELS = {
    "bf16 O1": {"bf16": True, "fp16_opt_level": "O1"},
    "bf16 O2": BF16,
    "fp16 O1": {"fp16": True, "fp16_opt_level": "O1"},
    "fp16 O2": FP16,
}
FAST = ("llama", "bf16 O2", "full")  # the value of each parameter that `make test` runs


def mostly_slow(values: Any) -> list[Any]:
    return [value if value in FAST else pytest.param(value, marks=pytest.mark.slow) for value in values]


FLASH = [family for family in WRITERS if family not in ("opt", "glm")]
FLASHMASK = ("llama", "qwen2", "chatglm_v2", "opt")
FUSED_NORM = [family for family in WRITERS if FAMILIES[family].capabilities.fused_rms_norm]
FUSED_ROPE = ("llama", "qwen2")


@pytest.fixture
def curve_case(tmp_path: Path, device: str) -> Case:
    """Return a case whose steps use the same eight samples."""
    steps = CURVE_STEPS[device]
    settings = {"max_steps": steps, "learning_rate": 3e-3, "adam_epsilon": 1e-8}
    case = case_on(device, tmp_path, evaluation=0, global_batch=8, **settings)
    return replace(case, train=case.train[:8] * steps)


# ---- 16 bits --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", mostly_slow(LEVELS))
def test_the_loss_curve_of_16_bits_equals_that_of_32(curve_case: Case, device: str, level: str) -> None:
    plain, found = one(curve_case), one(with_settings(curve_case, **LEVELS[level]))
    assert len(found.losses) == CURVE_STEPS[device]
    np.testing.assert_allclose(found.losses, plain.losses, rtol=HALF_LIMIT)
    if device == "gpu":
        assert found.losses != plain.losses, "the losses are those of 32 bits: 16 bits were not used"
        assert found.losses[-1] < found.losses[0] - 0.5
        dtype = {"bf16": "bfloat16", "fp16": "float16"}[level[:4]] if level.endswith("O2") else "float32"
        assert dtype in found.dtypes, "the network does not have the type of --fp16_opt_level O2"


@pytest.mark.parametrize(
    "master", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["amp_master_grad", "plain"]
)
def test_the_scaler_lowers_a_scale_that_overflows(curve_case: Case, device: str, master: bool) -> None:
    """The first steps overflow. They are counted as skipped, and the training continues with a lower scale."""
    initial = 2.0**24
    found = one(with_settings(curve_case, **FP16 | {"amp_master_grad": master}), scale_loss=initial)
    if device == "cpu":
        assert found.scale is None and found.skipped == 0
        return
    assert found.scale is not None and found.scale < initial
    assert 0 < found.skipped < CURVE_STEPS[device] // 2
    # A skipped step's row has neither loss nor norm. Norms are those of unscaled gradients.
    taken = [loss for loss in found.losses if math.isfinite(loss)]
    assert len(taken) == CURVE_STEPS[device] - found.skipped and taken[-1] < taken[0]
    norms = [norm for norm in found.norms if math.isfinite(norm)]
    assert norms and max(norms) < 1000
    assert all(np.isfinite(value).all() for value in found.weights.values())


# ---- kernels --------------------------------------------------------------------------------------------------------


def with_and_without(case: Case, switch: dict[str, Any]) -> tuple[Trained, Trained]:
    return one(with_settings(case, **switch)), one(with_settings(case, **dict.fromkeys(switch, False)))


@pytest.mark.parametrize("family", mostly_slow(FLASH))
def test_flash_attention_trains_as_plain_attention_does(tmp_path: Path, device: str, family: str) -> None:
    case = family_case(device, tmp_path, family, evaluation=0, **BF16)
    flash, plain = with_and_without(case, {"use_flash_attention": True})
    assert_close(flash, plain, HALF_LIMIT)
    if device == "gpu":
        assert "attention" in flash.kernels and "attention" not in plain.kernels
        assert flash.losses != plain.losses, "the losses are those of plain attention: flash attention was not used"


@pytest.mark.parametrize("family", mostly_slow(WRITERS))
def test_packed_rows_train_as_in_32_bits(tmp_path: Path, device: str, family: str) -> None:
    """16 bits use the kernel of FlashMask, which float32 does not have."""
    case = case_on(device, tmp_path, family=family, entry="finetune", packed=True, evaluation=0)
    found, expected = one(with_settings(case, **BF16, use_flash_attention=True)), one(case)
    assert_close(found, expected, HALF_LIMIT)
    if device == "gpu" and family in FLASHMASK:
        assert "flashmask" in found.kernels and "flashmask" not in expected.kernels


@pytest.mark.slow
@pytest.mark.parametrize("family", FLASH)
def test_a_prefix_trains_with_flash_attention_as_without_it(tmp_path: Path, device: str, family: str) -> None:
    settings = {"prefix_tuning": True, "num_prefix_tokens": 4, "learning_rate": 0.1, **BF16}
    case = case_on(device, tmp_path, family=family, entry="finetune", evaluation=0, **settings)
    flash, plain = with_and_without(case, {"use_flash_attention": True})
    assert_close(flash, plain, HALF_LIMIT)
    assert flash.losses[-1] != flash.losses[0]


@pytest.mark.slow
@pytest.mark.parametrize("family", FUSED_NORM)
def test_fused_norm_and_rotary_embedding_train_as_plain_ones(tmp_path: Path, device: str, family: str) -> None:
    rope = {"use_fused_rope": True} if family in FUSED_ROPE else {}
    case = family_case(device, tmp_path, family, evaluation=0, **BF16)
    fused, plain = with_and_without(case, {"use_fused_rms_norm": True, **rope})
    assert_close(fused, plain, HALF_LIMIT)
    if device == "gpu" and rope:
        assert "rope" in fused.kernels and "rope" not in plain.kernels


# ---- float32: only the order of sums may differ --------------------------------------------------------------


def run(case: Case) -> RankRecord:
    (record,) = run_case(case, env=DETERMINISTIC)
    return record


def assert_equal(case: Case, other: Case) -> None:
    """Compare every loss, norm, gradient, weight and moment within the rounding of another order of sums."""
    record = run(case)
    swapped = case.with_other_micro_batches()
    assert swapped is not None
    found = compare(record, [run(other)], rounding_floor(record, run(swapped)), FIRST_STEP_LIMITS)
    failures = [difference for difference in found if not difference.passed]
    assert found and not failures, failures[0]


@pytest.mark.slow
@pytest.mark.parametrize("family", list(WRITERS))
def test_a_gpu_trains_as_the_cpu_does(tmp_path: Path, device: str, family: str) -> None:
    case = family_case("cpu", tmp_path, family)
    assert_equal(case, with_settings(case, device=device))


@pytest.mark.slow
@pytest.mark.parametrize("granularity", ["full", "full_attn", "core_attn"])
def test_recompute_changes_nothing(tmp_path: Path, device: str, granularity: str) -> None:
    case = case_on(device, tmp_path)
    assert_equal(case, with_settings(case, recompute=True, recompute_granularity=granularity))


@pytest.mark.slow
def test_four_micro_batches_of_one_sample_equal_one_of_four(tmp_path: Path, device: str) -> None:
    case = case_on(device, tmp_path, global_batch=4)
    assert case.config.gradient_accumulation_steps == 4
    assert_equal(case, with_settings(case, per_device_train_batch_size=4, gradient_accumulation_steps=1))


@pytest.mark.slow
def test_optimizer_states_in_host_memory_change_nothing(tmp_path: Path, device: str) -> None:
    case = case_on(device, tmp_path)
    assert_equal(case, with_settings(case, offload_optim=True))


@pytest.mark.parametrize("offload", [pytest.param(False, marks=pytest.mark.slow), True])
def test_offloaded_states_are_in_host_memory(tmp_path: Path, device: str, offload: bool) -> None:
    case = case_on(device, tmp_path, offload_optim=offload, max_steps=1, evaluation=0)
    (found,) = run_ranks(state_places, 1, case, device=device)
    assert found == {name: {STATE_PLACES[device][offload]} for name in ("moment1", "moment2")}
