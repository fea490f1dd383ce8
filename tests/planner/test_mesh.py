"""The planned groups of ranks equal those of Paddle's topology; tests/parallel/layout_runs.py compares them in running jobs."""

from __future__ import annotations

from itertools import product

import pytest

from paddle_llm.config.layout import Layout
from paddle_llm.planner.mesh import Order, crosses_machines, groups_of, rank_distance

_FLEET = {"data": "data", "pipeline": "pipe", "sharding": "sharding", "tensor": "model"}
_FLEET_ORDER = {
    "pp_first": ["data", "pipe", "sharding", "sep", "model"],
    "sharding_first": ["data", "sharding", "pipe", "sep", "model"],
}


@pytest.mark.parametrize("order", _FLEET_ORDER)
def test_groups_equal_those_of_paddle(order: Order) -> None:
    from paddle.distributed.fleet.base.topology import CommunicateTopology

    for data, sharding, tensor, pipeline in product((1, 2, 3), (1, 2), (1, 4), (1, 2, 3)):
        layout = Layout(data=data, sharding=sharding, tensor=tensor, pipeline=pipeline)
        sizes = {"data": data, "pipe": pipeline, "sharding": sharding, "sep": 1, "model": tensor}
        names = _FLEET_ORDER[order]
        topology = CommunicateTopology(names, [sizes[name] for name in names])
        for axis, upstream in _FLEET.items():
            found = [groups.groups for groups in groups_of(layout, order, 8) if groups.axis == axis]
            if getattr(layout, axis) == 1:
                assert found == []
            else:
                expected = {tuple(group) for group in topology.get_comm_list(upstream)}
                assert set(found[0]) == expected, (layout, axis)
                assert all(group[1] - group[0] == rank_distance(layout, order, axis) for group in found[0])


def test_groups_that_cross_machines_are_counted() -> None:
    layout = Layout(sharding=2, tensor=8, pipeline=2)
    found = {groups.axis: (len(groups.groups), groups.crossing) for groups in groups_of(layout, "pp_first", 8)}
    assert found == {"tensor": (4, 0), "sharding": (16, 16), "pipeline": (16, 16)}
    assert not crosses_machines(layout, "pp_first", "tensor", 8)
    assert crosses_machines(layout, "pp_first", "tensor", 4)
    # Machines of three ranks: of the pairs 0-1, 2-3, 4-5 the second one crosses.
    pairs = groups_of(Layout(data=2), "pp_first", 3)
    three = groups_of(Layout(data=3, tensor=2), "pp_first", 3)
    assert [groups.crossing for groups in pairs] == [0]
    assert {groups.axis: groups.crossing for groups in three}["tensor"] == 1


def test_one_rank_has_no_groups() -> None:
    assert groups_of(Layout(), "pp_first", 8) == []
