"""What a rank does in the tests of layouts: build, one step of plain gradient descent, hand back its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from paddle_llm.config.layout import Layout
from tests.models.building import batch, build


def start_fleet(layout: Layout, micro_batches: int = 2, rows: int = 1) -> None:
    """Bring up gloo and fleet on this rank."""
    from paddle.distributed import fleet

    from paddle_llm.parallel.gloo import install_gloo_backend

    install_gloo_backend()
    strategy = fleet.DistributedStrategy()
    strategy.hybrid_configs = {
        "dp_degree": layout.data,
        "mp_degree": layout.tensor,
        "pp_degree": layout.pipeline,
        "sharding_degree": layout.sharding,
    }
    strategy.pipeline_configs = {
        "accumulate_steps": micro_batches,
        "micro_batch_size": rows,
        # Ranks of a tensor-parallel group send their own activations, not parts of one; the trainer sees to it, too.
        "enable_partial_send_recv": not layout.sequence_parallel,
    }
    fleet.init(is_collective=True, strategy=strategy)


def step(folder: Path, family: str, layout: Layout, fields: dict[str, Any]) -> dict[str, Any]:
    """On one rank: the loss of one batch of 2 samples, and the weights before and after one step of SGD.

    Returns {"loss": float, "before": parts, "after": parts}; parts: name -> (full shape, axis, ranges, values).
    """
    import paddle

    if layout.world_size > 1:
        start_fleet(layout)
    model = build(folder, layout=layout, **fields)
    before = parts(model, family)
    optimizer = paddle.optimizer.SGD(learning_rate=1.0, parameters=model.parameters())
    loss = _take_step(model, optimizer, family, layout)
    return {"loss": loss, "before": before, "after": parts(model, family)}


def _take_step(model: Any, optimizer: Any, family: str, layout: Layout) -> float:
    from paddle.distributed import fleet
    from paddle.distributed.fleet.utils.sequence_parallel_utils import register_sequence_parallel_allreduce_hooks

    inputs = batch(family)
    if layout.sequence_parallel:
        steps = 2 if layout.pipeline > 1 else 1
        register_sequence_parallel_allreduce_hooks(model, steps, False)
    if model.config.recompute:
        model.recompute_enable()
    model.train()
    if layout.pipeline > 1:
        pipeline = fleet.distributed_model(model)
        optimizer = fleet.distributed_optimizer(optimizer)
        labels = inputs.pop("labels")
        return float(pipeline.train_batch([inputs["input_ids"], labels], optimizer=optimizer))
    loss = model(**inputs)[0]
    loss.backward()
    optimizer.step()
    return float(loss)


def parts(model: Any, family: str) -> dict[str, tuple]:
    """This rank's weights and where they belong in the full ones."""
    from paddle_llm.models.names import canonical_parameters
    from paddle_llm.models.shards import shard_of

    config, found = model.config, {}
    for name, parameter in canonical_parameters(model, family):
        split = bool(getattr(parameter, "is_distributed", False))
        degree, rank = max(config.tensor_parallel_degree, 1), config.tensor_parallel_rank
        shard = shard_of(family, name, parameter.shape, split, config, degree, rank)
        found[name] = (shard, parameter.numpy().copy())
    return found


def assert_covers(ranks: list[dict[str, tuple]], full: dict[str, tuple], tolerance: float) -> None:
    """Every rank's parts are those of the full weights, and together they are all of them; padding is unmoved."""
    seen: set[str] = set()
    for rank, held in enumerate(ranks):
        for name, (shard, values) in held.items():
            whole = full[name][1]
            padded = np.pad(whole, [(0, n - m) for n, m in zip(shard.shape, whole.shape, strict=True)])
            np.testing.assert_allclose(values, shard.take(padded), atol=tolerance, rtol=0, err_msg=f"rank {rank}: {name}")
            seen.add(name)
    assert seen == full.keys()
