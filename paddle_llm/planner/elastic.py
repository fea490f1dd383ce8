"""The layout of a job that continues on fewer machines: the same global batch on fewer data ranks."""

from __future__ import annotations

from dataclasses import dataclass, replace

from paddle_llm.config.layout import Layout
from paddle_llm.core.counts import counted


@dataclass(frozen=True)
class Batch:
    """The global batch of a job: `micro_batch` x `accumulation` x data ranks.

    Attributes:
        micro_batch: Samples per rank and micro-batch.
        accumulation: Micro-batches per optimizer step.
    """

    micro_batch: int
    accumulation: int


@dataclass(frozen=True)
class Shrunk:
    """How a job continues.

    Attributes:
        nodes: Number of machines that are used.
        layout: Layout on them.
        accumulation: Micro-batches per optimizer step, with which the global batch is the same.
    """

    nodes: int
    layout: Layout
    accumulation: int


def shrink(layout: Layout, batch: Batch, *, ranks_per_node: int, nodes: int, min_nodes: int = 1) -> Shrunk | None:
    """Return the layout on as many of the remaining machines as possible; None if no number of them has one.

    Tensor and pipeline degrees are kept. The degrees of data and sharding do not grow; the sharding degree shrinks last,
    because every rank then holds more state. The global batch must be a multiple of the samples of one micro-batch on
    all data ranks.

    Args:
        layout: Layout of the job on all its machines.
        batch: Global batch of the job.
        ranks_per_node: Ranks on each machine.
        nodes: Number of machines that remain.
        min_nodes: Smallest number of machines to use.
    """
    for used in range(nodes, min_nodes - 1, -1):
        data_ranks, rest = divmod(used * ranks_per_node, layout.tensor * layout.pipeline)
        accumulation, uneven = divmod(batch.accumulation * layout.data_world_size, max(data_ranks, 1))
        if rest or not data_ranks or uneven:
            continue
        for sharding in range(min(layout.sharding, data_ranks), 0, -1):
            if data_ranks % sharding == 0 and data_ranks // sharding <= layout.data:
                stage = layout.sharding_stage if sharding > 1 else 0
                smaller = replace(layout, data=data_ranks // sharding, sharding=sharding, sharding_stage=stage)
                return Shrunk(used, smaller, accumulation)
    return None


def why_not(layout: Layout, batch: Batch, *, ranks_per_node: int, nodes: int) -> str:
    """Return why a job cannot use a number of machines, with the numbers.

    Args:
        layout: Layout of the job on all its machines.
        batch: Global batch of the job.
        ranks_per_node: Ranks on each machine.
        nodes: Number of machines.
    """
    ranks, model = nodes * ranks_per_node, layout.tensor * layout.pipeline
    if ranks % model:
        return (
            f"{counted(nodes, 'machine')} with {counted(ranks, 'rank')}: tensor {layout.tensor} x pipeline {layout.pipeline} = "
            f"{model} does not divide {ranks}"
        )
    data_ranks, micro_batches = ranks // model, batch.accumulation * layout.data_world_size
    if micro_batches % data_ranks:
        return (
            f"{counted(nodes, 'machine')} with {counted(data_ranks, 'data rank')}: the global batch of "
            f"{micro_batches * batch.micro_batch} samples in micro-batches of {batch.micro_batch} cannot be divided by {data_ranks}"
        )
    return (
        f"{counted(nodes, 'machine')} with {counted(data_ranks, 'data rank')}: no degree of data up to {layout.data} and of sharding "
        f"up to {layout.sharding} have this product"
    )
