"""The layout of a job on fewer machines, as a table, and properties that hold for every layout."""

from __future__ import annotations

import itertools

import pytest

from paddle_llm.config.layout import Layout
from paddle_llm.planner.elastic import Batch, Shrunk, shrink, why_not

TP2 = Layout(data=4, tensor=2)
TP8PP4 = Layout(sharding=2, tensor=8, pipeline=4, sharding_stage=2)
HYBRID = Layout(data=2, sharding=4, sharding_stage=2)

# Layout, accumulation, ranks per machine, remaining and fewest machines -> machines, layout, accumulation.
TABLE = [
    pytest.param(Layout(data=4), 2, 1, 2, 2, (2, Layout(data=2), 4), id="half"),
    pytest.param(Layout(data=4), 2, 1, 3, 2, (2, Layout(data=2), 4), id="three do not divide the batch: two"),
    pytest.param(Layout(data=4), 3, 1, 3, 2, (3, Layout(data=3), 4), id="three divide the batch"),
    pytest.param(Layout(data=4), 2, 1, 1, 1, (1, Layout(), 8), id="one rank"),
    pytest.param(Layout(data=4), 2, 1, 3, 3, None, id="three do not divide the batch, and two are too few"),
    pytest.param(TP2, 1, 4, 1, 1, (1, Layout(data=2, tensor=2), 2), id="tensor is kept"),
    pytest.param(TP8PP4, 32, 8, 4, 4, (4, Layout(tensor=8, pipeline=4), 64), id="sharding ends"),
    pytest.param(TP8PP4, 32, 8, 7, 2, (4, Layout(tensor=8, pipeline=4), 64), id="7 machines: 4 are used"),
    pytest.param(TP8PP4, 32, 8, 3, 2, None, id="three machines are smaller than the model"),
    pytest.param(HYBRID, 1, 4, 1, 1, (1, Layout(sharding=4, sharding_stage=2), 2), id="data shrinks first"),
    pytest.param(HYBRID, 1, 2, 1, 1, (1, Layout(sharding=2, sharding_stage=2), 4), id="then sharding"),
    pytest.param(HYBRID, 3, 2, 3, 1, (3, Layout(2, 3, sharding_stage=2), 4), id="sharding of three"),
    pytest.param(
        Layout(data=4, pipeline=2, virtual_stages=2), 8, 4, 1, 1,
        (1, Layout(data=2, pipeline=2, virtual_stages=2), 16), id="virtual stages are kept",
    ),
    pytest.param(Layout(tensor=8, sequence_parallel=True), 1, 4, 1, 1, None, id="tensor over two machines"),
    pytest.param(Layout(data=4), 2, 1, 4, 2, (4, Layout(data=4), 2), id="all machines"),
]  # fmt: skip


@pytest.mark.parametrize(("layout", "accumulation", "ranks", "nodes", "fewest", "expected"), TABLE)
def test_the_layout_on_the_remaining_machines(layout, accumulation, ranks, nodes, fewest, expected):
    found = shrink(layout, Batch(2, accumulation), ranks_per_node=ranks, nodes=nodes, min_nodes=fewest)
    assert found == (None if expected is None else Shrunk(*expected))


def test_the_global_batch_and_the_model_are_always_kept():
    count = 0
    degrees = (1, 2, 3, 4)
    for data, sharding, tensor, pipeline, accumulation in itertools.product(
        degrees, degrees, (1, 2), (1, 2), (1, 2, 6)
    ):
        layout = Layout(data, sharding, tensor, pipeline, 2 if sharding > 1 else 0)
        for ranks in (1, 2, 4):
            if layout.world_size % ranks:
                continue
            for nodes in range(1, layout.world_size // ranks + 1):
                batch = Batch(2, accumulation)
                found = shrink(layout, batch, ranks_per_node=ranks, nodes=nodes)
                if found is None:
                    assert why_not(layout, batch, ranks_per_node=ranks, nodes=nodes)
                    continue
                count += 1
                small = found.layout
                assert small.world_size == found.nodes * ranks and found.nodes <= nodes
                assert (small.tensor, small.pipeline) == (tensor, pipeline)
                assert small.data <= data and small.sharding <= sharding
                assert found.accumulation * small.data_world_size == accumulation * layout.data_world_size
                if nodes == layout.world_size // ranks:
                    assert (small, found.accumulation) == (layout, accumulation)
    assert count > 300


@pytest.mark.parametrize(
    ("layout", "nodes", "why"),
    [
        (TP8PP4, 3, "3 machines with 24 ranks: tensor 8 x pipeline 4 = 32 does not divide 24"),
        (Layout(data=4), 3, "3 machines with 24 data ranks: the global batch of 16 samples in micro-batches of 2 cannot be divided by 24"),
        (Layout(sharding=8, sharding_stage=2), 2, "no degree of data up to 1 and of sharding up to 8 have this product"),
    ],
)  # fmt: skip
def test_the_reason_has_the_numbers(layout, nodes, why):
    assert why in why_not(layout, Batch(2, 2), ranks_per_node=8, nodes=nodes)
