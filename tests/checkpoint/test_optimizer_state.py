"""States of an optimizer by weight, on one rank."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import paddle
import pytest
from paddle.distributed.fleet.meta_optimizers.dygraph_optimizer import DygraphShardingOptimizer
from paddle.distributed.fleet.meta_optimizers.dygraph_optimizer.dygraph_sharding_optimizer import (
    DygraphShardingOptimizerV2,
)

from paddle_llm.checkpoint.training_state.optimizer_state import OptimizerState
from paddle_llm.core.errors import UserError


def _step(layer: paddle.nn.Layer, optimizer: paddle.optimizer.Optimizer) -> None:
    layer(paddle.ones([2, 3])).sum().backward()
    optimizer.step()
    optimizer.clear_grad()


def test_states_exist_before_the_first_update_and_are_those_of_the_update():
    layer = paddle.nn.Linear(3, 2)
    optimizer = paddle.optimizer.AdamW(0.1, parameters=layer.parameters())
    states = OptimizerState(optimizer)
    assert states.states(layer.weight) == {} and states.owns(layer.weight)
    states.create([layer.weight])
    created = states.states(layer.weight)
    assert set(created) == {"moment1", "moment2", "beta1_pow_acc", "beta2_pow_acc"}
    created["moment1"].set_value(np.full([3, 2], 4.0, np.float32))
    _step(layer, optimizer)
    np.testing.assert_allclose(states.states(layer.weight)["moment1"].numpy(), np.full([3, 2], 0.9 * 4 + 0.1 * 2))
    assert set(states.states(layer.bias)) == set(created)


def test_states_of_fused_or_cut_weights_are_refused():
    cut = DygraphShardingOptimizerV2.__new__(DygraphShardingOptimizerV2)
    fused = DygraphShardingOptimizer.__new__(DygraphShardingOptimizer)
    fused.tensor_fusion = True
    for sharding in (cut, fused):
        with pytest.raises(UserError, match="Remove these words, or use --sharding stage2"):
            OptimizerState(SimpleNamespace(_inner_opt=sharding))
