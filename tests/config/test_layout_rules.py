"""Degrees and a world size give a layout, or a message with the numbers."""

from __future__ import annotations

from typing import Any

import pytest

from paddle_llm.config.layout import Layout, LayoutResult, layout_of
from paddle_llm.config.run_config import RunConfig


def divide(world_size: int, **fields: Any) -> LayoutResult:
    degrees = {
        "tp": "tensor_parallel_degree",
        "pp": "pipeline_parallel_degree",
        "sd": "sharding_parallel_degree",
        "dp": "data_parallel_degree",
    }
    return layout_of(RunConfig(**{degrees.get(key, key): value for key, value in fields.items()}), world_size)


@pytest.mark.parametrize(
    ("world_size", "fields", "layout"),
    [
        (1, {}, Layout()),
        (4, {}, Layout(data=4)),
        (8, {"tp": 2}, Layout(data=4, tensor=2)),
        (8, {"tp": -1, "pp": -1}, Layout(data=8)),
        (8, {"tp": 2, "pp": 2}, Layout(data=2, tensor=2, pipeline=2)),
        (8, {"sharding": "stage2"}, Layout(sharding=8, sharding_stage=2)),
        (8, {"tp": 2, "sharding": "stage1"}, Layout(sharding=4, tensor=2, sharding_stage=1)),
        (8, {"sharding": "stage1", "sd": 2}, Layout(data=4, sharding=2, sharding_stage=1)),
        (8, {"sharding": "stage1", "dp": 2}, Layout(data=2, sharding=4, sharding_stage=1)),
        (8, {"sharding": "stage1", "dp": 2, "sd": 2, "tp": 2}, Layout(2, 2, 2, 1, 1)),
        (8, {"sharding": "stage3"}, Layout(sharding=8, sharding_stage=3)),
        (16, {"tp": 2, "pp": 4, "virtual_pp_degree": 2}, Layout(data=2, tensor=2, pipeline=4, virtual_stages=2)),
        (2, {"tp": 2, "sequence_parallel": True}, Layout(tensor=2, sequence_parallel=True)),
        (8, {"sd": 1, "tp": 2}, Layout(data=4, tensor=2)),
    ],
)
def test_degrees_and_world_size_give_a_layout(world_size: int, fields: dict[str, Any], layout: Layout) -> None:
    found = divide(world_size, **fields)
    assert found.layout == layout
    assert found.problems == [] and found.notices == []
    assert layout.world_size == world_size


@pytest.mark.parametrize(
    ("world_size", "fields", "message"),
    [
        (1, {"tp": 2}, "Start the job with paddle-llm pretrain CONFIG.json --nproc_per_node 2"),
        (1, {"tp": 8, "pp": 4, "dp": 2}, "--nproc_per_node 8 --nnodes 8 --master HOST:PORT"),
        (1, {"tp": 2, "pp": 2, "sharding": "stage1", "sd": 2}, "CONFIG.json --nproc_per_node 8"),
        (1, {"dp": 3}, "data_parallel_degree 3 needs 3 processes, but only one was started"),
        (
            6,
            {"tp": 4},
            "tensor_parallel_degree 4 = 4 ranks does not divide the 6 ranks of the job. Start the job on 4 or 8 ranks",
        ),
        (
            2,
            {"tp": 2, "pp": 2},
            "tensor_parallel_degree 2 x pipeline_parallel_degree 2 = 4 ranks is more than the 2 ranks of the job",
        ),
        (8, {"tp": 2, "dp": 2}, "= 4 ranks, but the job has 8: 4 would be idle. Start the job on 4 ranks"),
        (8, {"sharding": "stage1", "sd": 2, "dp": 2}, "= 4 ranks, but the job has 8"),
        (
            4,
            {"dp": 1},
            "data_parallel_degree 1 uses one rank, but the job has 4: 3 would be idle. Start the job on 1 rank, drop",
        ),
        (2, {"sd": 2}, "sharding_parallel_degree = 2 without --sharding"),
        (2, {"tp": 0}, "tensor_parallel_degree = 0 is not a degree. Use 1 or more"),
    ],
)
def test_degrees_that_do_not_fit_the_world_size_are_refused(
    world_size: int, fields: dict[str, Any], message: str
) -> None:
    found = divide(world_size, **fields)
    assert found.layout is None
    assert len(found.problems) == 1 and message in found.problems[0]


@pytest.mark.parametrize(("world_size", "fields"), [(1, {}), (2, {"tp": 2}), (4, {"sd": 1})])
def test_sharding_without_effect_is_reported(world_size: int, fields: dict[str, Any]) -> None:
    found = divide(world_size, sharding="stage2", **fields)
    assert found.layout is not None and found.layout.sharding == 1 and found.layout.sharding_stage == 0
    assert len(found.notices) == 1 and "has no ranks to shard over" in found.notices[0]
