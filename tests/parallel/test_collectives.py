"""Collectives over gloo: every type, odd sizes, groups that are not the world, two groups at once."""

from __future__ import annotations

import pytest

from paddle_llm.rehearse.ranks import run_ranks
from tests.parallel.collective_checks import CHECKS, check_all, make_many_groups


@pytest.fixture(scope="module")
def problems() -> list[dict[str, list[str]]]:
    """Return the differences from the definitions, by rank and collective; the ranks are started once."""
    return run_ranks(check_all, 4, [[[0, 1, 2, 3]], [[0, 3], [1, 2]], [[1, 2, 3]]], timeout=180)


@pytest.mark.parametrize("name", CHECKS)
def test_a_collective_equals_its_definition(problems, name):
    assert len(CHECKS) == 14
    assert [by_name[name] for by_name in problems] == [[], [], [], []]


def test_fifty_groups_can_be_created_one_after_the_other():
    assert run_ranks(make_many_groups, 4, 50) == [[1.0] * 25, [1.0] * 25, [5.0] * 25, [5.0] * 25]
