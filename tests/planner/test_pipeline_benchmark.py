"""The simulation of ranks that share cores, in benchmarks/planner_pipeline.py."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from paddle_llm.planner.pipeline.events import ChunkTimes, run_schedule
from paddle_llm.planner.pipeline.schedules import build_schedule


@pytest.fixture
def run_on_cores(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return import_module("planner_pipeline").run_on_cores


@pytest.mark.parametrize(("name", "chunks"), [("1f1b", 1), ("interleaved", 2), ("zero-bubble", 1)])
def test_shared_cores_are_no_limit_if_every_rank_has_one(run_on_cores, name, chunks):
    schedule = build_schedule(name, 3, 6, chunks)
    random, size = np.random.default_rng(3), schedule.positions
    parts = [random.uniform(0.5, 2, size) for _ in range(3)]
    times = ChunkTimes(*parts, random.uniform(0, 0.5, size - 1))
    shared, own = run_on_cores(schedule, times, 3), run_schedule(schedule, times)
    np.testing.assert_allclose(shared.end, own.end)
    np.testing.assert_allclose(shared.start, own.start)


def test_ranks_that_share_cores_are_as_fast_as_the_cores(run_on_cores):
    schedule, times = build_schedule("1f1b", 4, 16), ChunkTimes.uniform(4, 1, 2)
    assert float(run_on_cores(schedule, times, 1).seconds) == pytest.approx(4 * 16 * 3)  # one core is always busy
    on_two = float(run_on_cores(schedule, times, 2).seconds)
    assert 4 * 16 * 3 / 2 < on_two < 4 * 16 * 3 / 2 * 1.1
    two = run_on_cores(build_schedule("1f1b", 2, 1), ChunkTimes.uniform(2, 1, 2), 1)
    assert float(two.seconds) == pytest.approx(6)
