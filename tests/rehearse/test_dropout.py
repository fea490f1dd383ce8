"""Dropout on ranks: the same mask for a replicated tensor, different masks for a split one and for different samples.

The masks are those of real layers in real trainings, through the trainer. (LLaMA and ChatGLM-6B have no dropout.)
"""

from __future__ import annotations

from collections import Counter
from itertools import combinations

import numpy as np
import pytest

from paddle_llm.config.layout import Layout
from paddle_llm.rehearse.case import Case
from paddle_llm.rehearse.ranks import run_ranks
from tests.rehearse.cases import make_case
from tests.rehearse.dropout_runs import Dropped, run_with_dropout

LAYERS, STEPS, BATCH = 2, 2, 4


def dropout_case(folder, layout: Layout, family: str, **settings) -> Case:
    layers = {"bloom": "n_layer", "chatglm_v2": "num_layers"}[family]
    return make_case(
        folder,
        layout,
        family=family,
        model={layers: LAYERS},
        global_batch=BATCH,
        evaluation=2,
        **{"max_steps": STEPS, **settings},
    )


def train(folder, layout: Layout, family: str, **settings) -> list[Dropped]:
    case = dropout_case(folder, layout, family, **settings)
    return run_ranks(run_with_dropout, layout.world_size, case, folder / "output", quiet=True)


def shared(one: list[np.ndarray], other: list[np.ndarray]) -> int:
    """Return the number of masks that two ranks have in common, drawn at any time."""
    return sum((Counter(map(np.ndarray.tobytes, one)) & Counter(map(np.ndarray.tobytes, other))).values())


def check_masks(rank: Dropped, layout: Layout) -> None:
    """Check the masks of a rank: one per layer and micro-batch (evaluation draws none), half of the values, all different."""
    micro_batches = STEPS * BATCH // layout.data_world_size
    layers = LAYERS // layout.pipeline
    assert (len(rank.hidden), len(rank.attention)) == (2 * layers * micro_batches, layers * micro_batches)
    for masks in (rank.hidden, rank.attention):
        assert len({mask.tobytes() for mask in masks}) == len(masks)
        assert 0.45 < np.mean([mask.mean() for mask in masks]) < 0.55


@pytest.mark.parametrize("family", ["bloom", "chatglm_v2"])
def test_tensor_ranks_share_masks_of_replicated_values_and_data_ranks_do_not(tmp_path, family):
    layout = Layout(data=2, tensor=2)
    ranks = train(tmp_path, layout, family)
    for rank in ranks:
        check_masks(rank, layout)
    for first in (0, 2):  # the two tensor ranks of one data rank
        one, other = ranks[first], ranks[first + 1]
        assert all(np.array_equal(a, b) for a, b in zip(one.hidden, other.hidden, strict=True))
        assert shared(one.attention, other.attention) == 0
        # Replicated weights stay equal.
        norms = [name for name in one.weights if "norm" in name or "ln_f" in name]
        assert len(norms) > 2 * LAYERS
        assert all(np.array_equal(one.weights[name], other.weights[name]) for name in norms)
    assert shared(ranks[0].hidden, ranks[2].hidden) == shared(ranks[0].attention, ranks[2].attention) == 0


@pytest.mark.parametrize(
    ("family", "layout"),
    [
        ("bloom", Layout(data=2)),
        ("bloom", Layout(sharding=2, sharding_stage=2)),
        ("bloom", Layout(pipeline=2)),
        ("chatglm_v2", Layout(pipeline=2)),
        ("chatglm_v2", Layout(tensor=2, sequence_parallel=True)),
    ],
    ids=str,
)
def test_ranks_without_replicated_tensors_draw_different_masks(tmp_path, family, layout):
    ranks = train(tmp_path, layout, family)
    for rank in ranks:
        check_masks(rank, layout)
    for one, other in combinations(ranks, 2):
        assert shared(one.hidden, other.hidden) == shared(one.attention, other.attention) == 0


@pytest.mark.parametrize(
    ("family", "layout"),
    [("bloom", Layout(tensor=2)), ("bloom", Layout(pipeline=2)), ("chatglm_v2", Layout(tensor=2, pipeline=2))],
    ids=str,
)
def test_recompute_draws_the_same_masks_again(tmp_path, family, layout):
    plain = train(tmp_path, layout, family)
    recomputed = train(tmp_path, layout, family, recompute=True, recompute_granularity="full")
    for one, other in zip(plain, recomputed, strict=True):
        for once, twice in ((one.hidden, other.hidden), (one.attention, other.attention)):
            times = Counter(map(np.ndarray.tobytes, twice))
            assert times.keys() == {mask.tobytes() for mask in once} and set(times.values()) == {2}
        for name, weight in one.weights.items():
            np.testing.assert_allclose(other.weights[name], weight, rtol=1e-5, atol=1e-7, err_msg=name)


def test_masks_depend_only_on_the_seed(tmp_path):
    first, again, other = (train(tmp_path, Layout(), "bloom", seed=seed)[0] for seed in (1, 1, 2))
    assert shared(first.hidden, again.hidden) == len(first.hidden) and shared(first.hidden, other.hidden) == 0


@pytest.mark.parametrize("layout", [Layout(data=2), Layout(tensor=2)], ids=str)
def test_a_resumed_training_draws_the_masks_of_an_uninterrupted_one(tmp_path, layout):
    case = dropout_case(tmp_path, layout, "bloom", max_steps=3)
    output = tmp_path / "output"
    whole = run_ranks(run_and_save, layout.world_size, case, output, None, quiet=True)
    rest = run_ranks(run_and_save, layout.world_size, case, output, output / "checkpoint-2", quiet=True)
    for one, other in zip(whole, rest, strict=True):
        assert len(other.hidden) == len(one.hidden) // 3
        assert all(np.array_equal(a, b) for a, b in zip(one.hidden[-len(other.hidden) :], other.hidden, strict=True))
        assert all(np.array_equal(one.weights[name], other.weights[name]) for name in one.weights)


def run_and_save(case: Case, folder, resume_from) -> Dropped:
    return run_with_dropout(case, folder, resume_from, save_strategy="steps", save_steps=2)
