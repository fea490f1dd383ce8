"""Layouts through fleet and paddlenlp's Trainer on CPU ranks: losses and full weights equal to one process."""

from __future__ import annotations

import functools
import json

import numpy as np
import pytest

from paddle_llm.rehearse.ranks import run_ranks
from tests.parallel.layout_runs import STEPS, train

DEEP, TIED = {"num_hidden_layers": 8}, {"tie_word_embeddings": True}
LAYOUTS = {
    "dp2": ({"data": 2}, {}, {}),
    "sharding2": ({"sharding": 2, "sharding_stage": 1}, {}, {}),
    "tp2": ({"tensor": 2}, {}, {}),
    "tp2-sp": ({"tensor": 2, "sequence_parallel": True}, {}, {}),
    "pp2": ({"pipeline": 2}, TIED, {}),
    "tp2-pp2": ({"tensor": 2, "pipeline": 2}, TIED, {}),
    "tp2-sp-pp2": ({"tensor": 2, "pipeline": 2, "sequence_parallel": True}, {}, {}),
    "tp2-dp2": ({"tensor": 2, "data": 2}, {}, {}),
    "pp2-sharding2": ({"pipeline": 2, "sharding": 2, "sharding_stage": 1}, {}, {}),
    "pp4-v2": ({"pipeline": 4, "virtual_stages": 2}, DEEP, {}),
    "pp4-unbatched": ({"pipeline": 4}, DEEP, {"pipeline_parallel_config": "disable_batch_p2p_comm"}),
    "pp4-v2-overlap": (
        {"pipeline": 4, "virtual_stages": 2},
        DEEP,
        {"pipeline_parallel_config": "enable_overlap_p2p_comm"},
    ),
    "tp2-pp2-sharding2": ({"tensor": 2, "pipeline": 2, "sharding": 2, "sharding_stage": 1}, {}, {}),
}


@functools.cache
def one_process(model: str) -> tuple[list[float], dict[str, np.ndarray]]:
    return run_ranks(train, 1, {}, json.loads(model), {})[0]


@pytest.mark.parametrize("name", LAYOUTS)
def test_layout_equals_one_process(name):
    layout, model, options = LAYOUTS[name]
    losses, weights = one_process(json.dumps(model))
    assert len(losses) == STEPS and losses[-1] < losses[0] - 0.1
    world_size = int(np.prod([layout.get(axis, 1) for axis in ("data", "sharding", "tensor", "pipeline")]))
    results = run_ranks(train, world_size, layout, model, options)
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
