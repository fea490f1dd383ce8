"""One rank of the layout tests: builds a network, takes one step of plain gradient descent, returns its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from paddle_llm.config.layout import Layout
from tests.helpers.models.networks import batch, build


def start_fleet(layout: Layout) -> None:
    """Start gloo and fleet on this rank."""
    from paddle.distributed import fleet

    from paddle_llm.parallel.gloo.backend import install_gloo_backend

    install_gloo_backend()
    strategy = fleet.DistributedStrategy()
    strategy.hybrid_configs = {
        "dp_degree": layout.data,
        "mp_degree": layout.tensor,
        "pp_degree": layout.pipeline,
        "sharding_degree": layout.sharding,
    }
    strategy.pipeline_configs = {
        "accumulate_steps": rows(layout),
        "micro_batch_size": 1,
        # Ranks of a tensor-parallel group send their own activations, not parts of one; the trainer sets this as well.
        "enable_partial_send_recv": not layout.sequence_parallel,
    }
    fleet.init(is_collective=True, strategy=strategy)


def rows(layout: Layout) -> int:
    """Return the number of samples of a batch, the micro-batches of a pipeline; virtual stages need twice as many."""
    return 2 * layout.pipeline if layout.virtual_stages > 1 else 2


def steps(cases: dict[str, tuple], layout: Layout) -> dict[str, dict[str, Any]]:
    """Run `step` for each case (family, folder, fields) on one rank of `layout`; fleet is started once."""
    if layout.world_size > 1:
        start_fleet(layout)
    return {name: step(family, folder, fields, layout) for name, (family, folder, fields) in cases.items()}


def step(family: str, folder: Path, fields: dict[str, Any], layout: Layout, samples: int = 0) -> dict[str, Any]:
    """Return the loss of one batch and this rank's weights before and after one step of plain gradient descent.

    Returns {"loss": float, "before": parts, "after": parts}; see `parts`.
    """
    import paddle

    model = build(folder, layout=layout, **fields)
    before = parts(model, family)
    optimizer = paddle.optimizer.SGD(learning_rate=1.0, parameters=model.parameters())
    loss = _take_step(model, optimizer, batch(family, rows=samples or rows(layout)), layout)
    return {"loss": loss, "before": before, "after": parts(model, family)}


def _take_step(model: Any, optimizer: Any, inputs: dict[str, Any], layout: Layout) -> float:
    from paddle.distributed import fleet
    from paddle.distributed.fleet.utils.sequence_parallel_utils import register_sequence_parallel_allreduce_hooks

    if layout.sequence_parallel:
        register_sequence_parallel_allreduce_hooks(model, rows(layout) if layout.pipeline > 1 else 1, False)
    if model.config.recompute:
        model.recompute_enable()
    model.train()
    if layout.pipeline > 1:
        pipeline = fleet.distributed_model(model)
        optimizer = fleet.distributed_optimizer(optimizer)
        return float(pipeline.train_batch([inputs["input_ids"], inputs["labels"]], optimizer=optimizer))
    loss = model(**inputs)[0]
    loss.backward()
    optimizer.step()
    return float(loss)


def parts(model: Any, family: str) -> dict[str, tuple]:
    """Return this rank's weights and their positions in the full weights."""
    from paddle_llm.models.weights.names import canonical_parameters
    from paddle_llm.models.weights.shards import shard_of

    config, found = model.config, {}
    for name, parameter in canonical_parameters(model, family):
        split = bool(getattr(parameter, "is_distributed", False))
        degree, rank = max(config.tensor_parallel_degree, 1), config.tensor_parallel_rank
        shard = shard_of(family, name, parameter.shape, split, config, degree, rank)
        found[name] = (shard, parameter.numpy().copy())
    return found


def assert_covers(ranks: list[dict[str, tuple]], full: dict[str, tuple], tolerance: float, case: str) -> None:
    """Check that the parts of all ranks equal the full weights and cover them, and that padding is unchanged."""
    seen: set[str] = set()
    for rank, held in enumerate(ranks):
        for name, (shard, values) in held.items():
            whole = full[name][1]
            margin = [(0, n - m) for n, m in zip(shard.shape, whole.shape, strict=True)]
            padded = np.pad(whole, margin)
            np.testing.assert_allclose(
                values, shard.take(padded), atol=tolerance, rtol=0, err_msg=f"{case}, rank {rank}: {name}"
            )
            padding = shard.take(np.pad(np.zeros_like(whole), margin, constant_values=1)) == 1
            assert (values[padding] == 0).all(), f"{case}, rank {rank}: padding of {name} has moved"
            seen.add(name)
    assert seen == full.keys(), case
