"""Sharding stage 2: sums on the owners for any buckets, bounded memory, balanced owners, errors about differing ranks."""

from __future__ import annotations

import functools
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from paddle_llm.config.layout import Layout
from paddle_llm.parallel.zero.buckets import PARTS
from paddle_llm.parallel.zero.stage2 import MATRICES_IN_A_BUCKET, MAX_LIMIT, MIN_LIMIT, default_bucket_bytes
from paddle_llm.rehearse.ranks import RankError, run_ranks
from tests.helpers.models.tiny import write_llama
from tests.helpers.pretrain_jobs import config
from tests.parallel.sharded_runs import (
    alone,
    equal_after_wrapping,
    finished_when_waited_for,
    held_by_trainer,
    mean_over_ranks,
    quickstart_loads,
    raised_again,
    shared,
)

STEPS, MICRO_BATCHES = 2, 4
ALL_IN_ONE, SOME, EACH_ALONE = 32, 1e-3, 1e-9  # MB
CLIPPED, UNCLIPPED = 0.01, 100.0  # the largest norm that is left alone


@functools.cache
def one_process(max_norm: float) -> dict[str, np.ndarray]:
    return run_ranks(alone, 1, max_norm, STEPS, MICRO_BATCHES)[0]


@pytest.mark.parametrize("main_grad", [False, True], ids=["grad", "main_grad"])
@pytest.mark.parametrize("bucket_mb, max_norm", [(ALL_IN_ONE, CLIPPED), (SOME, UNCLIPPED), (EACH_ALONE, CLIPPED)])
def test_weights_are_those_of_one_process_for_any_bucket(bucket_mb, max_norm, main_grad):
    """With a layer used twice and recomputed, one without gradients, and a frozen one in the optimizer's list."""
    for weights, held in run_ranks(shared, 2, bucket_mb, max_norm, STEPS, MICRO_BATCHES, main_grad):
        assert held[0]
        for name, expected in one_process(max_norm).items():
            np.testing.assert_allclose(weights[name], expected, atol=2e-7, err_msg=name)


@pytest.mark.parametrize("bucket_mb", [SOME, EACH_ALONE])
def test_sums_that_arrive_late_are_added_to_newer_gradients(bucket_mb):
    """The order of events on a GPU: the second gradient of a parameter exists before the sum of its first one."""
    arguments = (bucket_mb, UNCLIPPED, STEPS, MICRO_BATCHES, False, finished_when_waited_for)
    for weights, _ in run_ranks(shared, 2, *arguments):
        for name, expected in one_process(UNCLIPPED).items():
            np.testing.assert_allclose(weights[name], expected, atol=2e-7, err_msg=name)


def test_weights_are_made_equal_without_fused_copies():
    """`first_broadcast`; Paddle's own function makes the copies."""
    assert run_ranks(equal_after_wrapping, 2, False) == [(True, 0)] * 2
    assert run_ranks(equal_after_wrapping, 2, True) == [(True, 1)] * 2


def test_gradients_are_averaged_before_they_can_overflow():
    """The sum over the ranks, 80,000, is beyond float16; the mean is not."""
    assert run_ranks(mean_over_ranks, 2, [40_000.0, 40_000.0], 1, "float16") == [[40_000.0], []]


def test_the_mean_of_each_micro_batch_is_added_once():
    assert run_ranks(mean_over_ranks, 2, [1.0, 2.0], 4, "float32") == [[6.0], []]


def test_a_bucket_holds_several_matrices_of_a_large_network():
    sizes = [4 * 4096 * 4096] * 4 + [4 * 4096 * 11008] * 3  # a block of LLaMA-2 7B in float32
    matrices = [SimpleNamespace(ndim=2, size=size // 4, element_size=lambda: 4) for size in sizes]
    assert default_bucket_bytes(matrices) // PARTS == MATRICES_IN_A_BUCKET * sum(sizes) // len(sizes)
    assert default_bucket_bytes([]) == MIN_LIMIT
    assert default_bucket_bytes([SimpleNamespace(ndim=2, size=2**30, element_size=lambda: 4)]) == MAX_LIMIT


@pytest.mark.parametrize("step", [0, 1])
def test_a_rank_whose_parameters_are_not_used_is_reported(step):
    """`once` is skipped on rank 1: all ranks detect it in the first step, and rank 1 in a later one, before it reduces."""
    with pytest.raises(RankError) as caught:
        run_ranks(shared, 2, EACH_ALONE, CLIPPED, 2, 2, False, None, (1, step), timeout=60)
    reported = [rank for rank, outcome in enumerate(caught.value.outcomes) if "use --sharding stage1" in outcome.stderr]
    assert reported == ([0, 1] if step == 0 else [1])
    assert "rank 1 reduces the gradients of linear_" in caught.value.outcomes[1].stderr
    assert all(outcome.state == "raised" for outcome in caught.value.outcomes)


def test_a_lost_exception_of_a_hook_is_raised_again():
    assert run_ranks(raised_again, 2) == [[True] * 4] * 2


DEGREES = [
    Layout(sharding=2, sharding_stage=2),
    Layout(sharding=4, sharding_stage=2),
    Layout(sharding=2, sharding_stage=2, pipeline=2),
    pytest.param(Layout(sharding=4, sharding_stage=2, pipeline=2), marks=pytest.mark.slow),
]
BUCKET_MB = 0.72  # a quarter of it holds the largest gradient
FLOAT = 4


def _model(folder: Path, **changes) -> None:
    """Return a model whose gradients are large compared with the activations of four tokens."""
    write_llama(folder / "llama", hidden_size=128, intermediate_size=344, **changes)


def _held(folder: Path, layout: Layout) -> list[dict[str, int]]:
    changes = {"max_seq_length": 4, "gradient_accumulation_steps": 3}
    config(folder)
    return run_ranks(held_by_trainer, layout.world_size, folder, layout, BUCKET_MB, changes)


@pytest.mark.parametrize("layout", DEGREES, ids=str)
def test_a_rank_holds_the_largest_share_and_a_bucket_at_most(layout, tmp_path):
    """During the backward passes, by elements and by bytes of Paddle's allocator; after them, what it owns."""
    _model(tmp_path)
    for found in _held(tmp_path, layout):
        assert found["elements"] * FLOAT <= found["share"] * FLOAT + BUCKET_MB * 2**20
        assert found["bytes"] <= found["share"] * FLOAT + BUCKET_MB * 2**20
        assert found["after"] == found["owned"]
        assert found["share"] < 1.15 * found["everything"] / layout.sharding


def test_stage_1_holds_more_gradients(tmp_path):
    """The measurement detects gradients: stage 1 exceeds the limit above."""
    _model(tmp_path)
    for found in _held(tmp_path, Layout(sharding=2, sharding_stage=1)):
        assert found["after"] == found["everything"]
        assert found["bytes"] > found["share"] * FLOAT + BUCKET_MB * 2**20


def test_tied_weights_are_sharded_too(tmp_path):
    """The embedding of both stages is most of this network; its gradient is kept by one sharding rank of each stage."""
    _model(tmp_path, vocab_size=2048, num_hidden_layers=2, tie_word_embeddings=True)
    tied = 2048 * 128
    for found in _held(tmp_path, Layout(sharding=2, sharding_stage=2, pipeline=2)):
        assert found["after"] == found["owned"]
        assert (found["owned"] >= tied) == (found["owned"] == found["share"])


@functools.cache
def quickstart() -> dict[str, list[int]]:
    return run_ranks(quickstart_loads, 1, 4)[0]


def _within_15_percent(loads: list[int]) -> bool:
    mean = sum(loads) / len(loads)
    return 0.85 * mean <= min(loads) and max(loads) <= 1.15 * mean


def test_owners_of_the_quickstart_model_are_balanced():
    assert _within_15_percent(quickstart()["whole"])
    assert quickstart()["whole"] == quickstart()["fleet's"]  # where it does, we do not depart from it


@pytest.mark.parametrize("stage", ["first", "last"])
def test_owners_of_a_pipeline_stage_are_as_balanced_as_its_largest_weight_allows(stage):
    """A stage has two layers and the embedding or the head, which is more than a quarter of the stage."""
    largest, *others = sorted(quickstart()[stage], reverse=True)
    assert largest == 4000 * 256 and not _within_15_percent([largest, *others])
    assert _within_15_percent(others)


def test_frozen_parameters_do_not_count():
    """Everything but attention is frozen: trained parameters are balanced, which fleet's choice does not achieve."""
    assert _within_15_percent(quickstart()["attention"])
    assert not _within_15_percent(quickstart()["fleet's attention"])
