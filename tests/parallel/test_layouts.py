"""The gloo backend under fleet and PaddleNLP's own Trainer: losses and full weights equal one process."""

from __future__ import annotations

import functools
import json

import numpy as np
import pytest

from paddle_llm.rehearse.ranks import run_ranks
from tests.parallel.layout_runs import STEPS, train

# Together they have every axis. tests/rehearse/test_matrix.py compares other layouts, through our trainer.
LAYOUTS = {
    "tp2-pp2": ({"tensor": 2, "pipeline": 2}, {"tie_word_embeddings": True}),
    "dp2-sharding2": ({"data": 2, "sharding": 2, "sharding_stage": 1}, {}),
}


@functools.cache
def one_process(model: str) -> tuple[list[float], dict[str, np.ndarray]]:
    return run_ranks(train, 1, {}, json.loads(model))[0]


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_equals_one_process(name):
    layout, model = LAYOUTS[name]
    losses, weights = one_process(json.dumps(model))
    assert len(losses) == STEPS and losses[-1] < losses[0] - 0.1
    world_size = int(np.prod([layout.get(axis, 1) for axis in ("data", "sharding", "tensor", "pipeline")]))
    results = run_ranks(train, world_size, layout, model)
    gathered: dict[str, np.ndarray] = {}
    for rank_losses, rank_weights in results:
        np.testing.assert_allclose(rank_losses, losses, rtol=1e-6)
        for tensor, array in rank_weights.items():
            # Every stage and replica that gives a tensor gives the same.
            np.testing.assert_allclose(array, weights[tensor], atol=2e-5, rtol=1e-4, err_msg=tensor)
            gathered[tensor] = array
    assert set(gathered) == set(weights)
    silent = sum(not rank_weights for _, rank_weights in results)
    assert silent == world_size - world_size // layout.get("tensor", 1)
