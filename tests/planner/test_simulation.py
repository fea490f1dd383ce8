"""Noise, stragglers and failures of a simulated job against closed forms."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest

from paddle_llm.planner.simulation.drawings import chrome_trace, svg
from paddle_llm.planner.simulation.goodput import (
    Failures,
    compare_intervals,
    daly_interval,
    expected_share,
    goodput,
    job_seconds,
    young_interval,
)
from paddle_llm.planner.simulation.scenario import Scenario
from paddle_llm.planner.simulation.step_times import ideal_timeline, simulate_steps, slowest_timeline

PIPELINE = Scenario(
    schedule="1f1b",
    pipeline=4,
    virtual_stages=1,
    micro_batches=8,
    replicas=3,
    tensor=2,
    forward=(0.01,) * 4,
    backward=(0.02,) * 4,
    weight=(0.0,) * 4,
    transfer=0.0,
    update=0.1,
)
FLAT = replace(PIPELINE, pipeline=1, forward=(0.01,), backward=(0.02,), weight=(0.0,), update=0.0)


def test_steps_without_disturbances_take_the_ideal_time():
    steps = simulate_steps(PIPELINE, 5, seed=0)
    assert steps.ideal == pytest.approx(0.03 * (8 + 3) + 0.1)
    assert steps.seconds == pytest.approx([steps.ideal] * 5)
    assert steps.idle_share == pytest.approx(3 / 11)


def test_a_step_waits_for_the_slowest_of_all_ranks():
    scenario = replace(FLAT, replicas=500, straggler_share=0.001, slowdown=2.0)  # 1000 ranks
    steps = simulate_steps(scenario, 1000, seed=1)
    slow = float((steps.seconds > 1.5 * steps.ideal).mean())
    expected = 1 - 0.999**1000
    assert slow == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / 1000))
    assert set(np.round(steps.seconds / steps.ideal, 6)) == {1.0, 2.0}


def test_noise_has_the_requested_mean_and_deviation():
    steps = simulate_steps(replace(FLAT, replicas=1, tensor=1, jitter=0.1), 40_000, seed=2)
    assert steps.mean / steps.ideal == pytest.approx(1, abs=0.003)
    assert float(steps.seconds.std()) / steps.ideal == pytest.approx(0.1, rel=0.03)


def test_more_ranks_wait_longer_under_the_same_noise():
    means = [simulate_steps(replace(FLAT, replicas=n, jitter=0.05), 500, seed=3).mean for n in (1, 16, 512)]
    assert means == sorted(means)
    assert means[2] > 1.1 * means[0]


@pytest.mark.parametrize(("rank", "stage"), [(0, 0), (3, 1), (7, 3), (8, 0), (23, 3)])
def test_ranks_are_numbered_by_tensor_then_pipeline_then_replica(rank, stage):
    scenario = replace(PIPELINE, slow_ranks={rank: 3.0})
    forward = tuple(0.03 if at == stage else 0.01 for at in range(4))
    expected = replace(PIPELINE, forward=forward, backward=tuple(2 * one for one in forward))
    assert simulate_steps(scenario, 1, seed=0).seconds == pytest.approx([simulate_steps(expected, 1, seed=0).ideal])
    assert slowest_timeline(scenario, 0)[1] == rank // 8


def test_slow_links_delay_a_pipeline():
    quiet = replace(PIPELINE, transfer=0.005)
    noisy = simulate_steps(replace(quiet, link_jitter=0.5), 300, seed=4)
    assert noisy.mean > simulate_steps(quiet, 1, seed=4).ideal
    assert simulate_steps(replace(PIPELINE, link_jitter=0.5), 3, seed=4).seconds == pytest.approx(noisy.ideal, rel=0.2)


def test_virtual_stages_divide_the_time_of_a_rank():
    interleaved = replace(PIPELINE, schedule="interleaved", virtual_stages=2)
    assert float(ideal_timeline(interleaved).seconds) == pytest.approx(0.03 * (8 + 3 / 2))


def test_the_same_seed_gives_the_same_steps():
    scenario = replace(PIPELINE, jitter=0.1, link_jitter=0.1, transfer=0.001, straggler_share=0.1)
    first, again, other = (simulate_steps(scenario, 50, seed).seconds for seed in (7, 7, 8))
    assert first.tolist() == again.tolist()
    assert first.tolist() != other.tolist()


def test_the_timeline_is_that_of_the_first_simulated_step():
    scenario = replace(PIPELINE, jitter=0.2)
    timeline, _ = slowest_timeline(scenario, seed=5)
    assert float(timeline.seconds) + scenario.update == pytest.approx(simulate_steps(scenario, 1, seed=5).seconds[0])


FAILURES = Failures(mean_time=4 * 3600.0, checkpoint=60.0, restart=600.0)


@pytest.mark.parametrize("minutes", [2, 10, 22, 60, 240])
def test_the_simulated_goodput_agrees_with_the_formula(minutes):
    gaps = np.random.default_rng(minutes).exponential(FAILURES.mean_time, 20_000)
    one = goodput(minutes, 60.0, FAILURES, gaps)
    assert one.share == pytest.approx(expected_share(minutes * 60.0, FAILURES), abs=4 * one.error)
    assert one.error < 0.01


def test_the_best_interval_is_near_those_of_young_and_daly():
    compared = compare_intervals(10.0, FAILURES, seed=0)
    best = max(compared, key=lambda one: one.share)
    assert [one.steps for one in compared] == sorted({one.steps for one in compared})
    assert compared[0].steps < best.steps < compared[-1].steps
    for seconds in (young_interval(FAILURES), daly_interval(FAILURES)):
        assert expected_share(seconds, FAILURES) == pytest.approx(best.expected, abs=0.003)
    # Daly's formula is the more exact one: it is close to the maximum of the closed formula.
    fine = max(np.linspace(100, 10_000, 20_000), key=lambda seconds: expected_share(float(seconds), FAILURES))
    assert daly_interval(FAILURES) == pytest.approx(fine, rel=0.01)
    assert young_interval(FAILURES) == pytest.approx(math.sqrt(2 * 60 * 4 * 3600))


def test_checkpoints_longer_than_twice_the_time_between_failures():
    assert daly_interval(Failures(mean_time=100.0, checkpoint=300.0, restart=0.0)) == 100.0


def test_the_duration_of_a_job_agrees_with_its_goodput():
    seconds = job_seconds(100_000, 120, 10.0, FAILURES, seed=0)
    assert seconds is not None
    assert float(seconds.mean()) == pytest.approx(100_000 * 10 / expected_share(1200.0, FAILURES), rel=0.01)


def test_a_job_without_failures_takes_its_steps_and_checkpoints():
    rare = Failures(mean_time=1e15, checkpoint=7.0, restart=100.0)
    assert job_seconds(25, 10, 2.0, rare, seed=0).tolist() == [25 * 2 + 3 * 7] * 400
    assert job_seconds(20, 10, 2.0, rare, seed=0).tolist() == [20 * 2 + 2 * 7] * 400


def test_a_job_that_cannot_reach_a_checkpoint_does_not_end():
    assert job_seconds(10, 10, 100.0, Failures(mean_time=10.0, checkpoint=100.0, restart=1.0), seed=0) is None


def test_the_picture_has_one_box_per_operation():
    timeline, _ = slowest_timeline(PIPELINE, 0)
    root = ElementTree.fromstring(svg(timeline, "a < b & c"))
    boxes = root.findall("{http://www.w3.org/2000/svg}rect")
    assert len(boxes) == 4 * 16 + 4 + 2 + 1  # operations, rows, legend, background
    assert any(text.text == "a < b & c" for text in root.iter("{http://www.w3.org/2000/svg}text"))


def test_the_trace_has_the_times_of_the_timeline():
    timeline, slowest = slowest_timeline(replace(PIPELINE, jitter=0.1), 0)
    events = [event for event in json.loads(chrome_trace(timeline, slowest))["traceEvents"] if event["ph"] == "X"]
    assert len(events) == 4 * 16
    assert max(event["ts"] + event["dur"] for event in events) == pytest.approx(float(timeline.seconds) * 1e6)
    for rank in range(4):  # operations of a rank do not overlap
        row = sorted((event["ts"], event["dur"]) for event in events if event["tid"] == rank)
        assert all(ts + dur <= after + 1e-2 for (ts, dur), (after, _) in zip(row[:-1], row[1:], strict=True))
