"""The distribution of the step time over noise, stragglers and slow links."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from paddle_llm.planner.pipeline.events import Array, ChunkTimes, Timeline, run_schedule, step_seconds
from paddle_llm.planner.pipeline.schedules import build_schedule
from paddle_llm.planner.simulation.scenario import Scenario

_BLOCK_ELEMENTS = 4_000_000  # numbers drawn at once; a constant, so that results depend on the seed alone


@dataclass(frozen=True)
class StepTimes:
    """Simulated steps of a job.

    Attributes:
        ideal: Seconds of a step without any disturbance.
        idle_share: Share of the pipelines' part of the ideal step in which a rank waits.
        seconds: Seconds of each simulated step: [steps].
    """

    ideal: float
    idle_share: float
    seconds: Array

    @property
    def mean(self) -> float:
        """Mean step time."""
        return float(self.seconds.mean())

    def quantile(self, share: float) -> float:
        """Return the step time that a share of the steps does not exceed."""
        return float(np.quantile(self.seconds, share))


def ideal_timeline(scenario: Scenario) -> Timeline:
    """Return the timeline of one pipeline without any disturbance."""
    schedule = build_schedule(scenario.schedule, scenario.pipeline, scenario.micro_batches, scenario.virtual_stages)
    return run_schedule(schedule, scenario.chunk_times())


def slowest_timeline(scenario: Scenario, seed: int) -> tuple[Timeline, int]:
    """Return the timeline of the slowest pipeline of the first simulated step, and the number of that pipeline.

    Args:
        scenario: Job.
        seed: Seed of the random numbers; the first step is that of `simulate_steps`.
    """
    times = _draw(scenario, np.random.default_rng(seed), 1)
    schedule = build_schedule(scenario.schedule, scenario.pipeline, scenario.micro_batches, scenario.virtual_stages)
    every = run_schedule(schedule, times)
    slowest = int(every.seconds[0].argmax())
    return Timeline(schedule, every.start[:, 0, slowest], every.end[:, 0, slowest]), slowest


def simulate_steps(scenario: Scenario, steps: int, seed: int) -> StepTimes:
    """Simulate steps of a job.

    Every rank gets a factor on its times per step, drawn from a log-normal distribution of mean 1, and is slow with the
    given probability. The ranks of a tensor-parallel group take as long as the slowest of them, a step as long as the
    slowest pipeline.

    Args:
        scenario: Job.
        steps: Number of steps.
        seed: Seed of the random numbers.
    """
    random = np.random.default_rng(seed)
    ranks = scenario.pipeline * scenario.replicas * scenario.tensor
    block = max(1, _BLOCK_ELEMENTS // ranks)
    seconds = [_seconds(scenario, _draw(scenario, random, min(block, steps - done))) for done in range(0, steps, block)]
    timeline = ideal_timeline(scenario)
    return StepTimes(
        ideal=float(timeline.seconds) + scenario.update,
        idle_share=float(timeline.idle_share),
        seconds=np.concatenate(seconds),
    )


def _seconds(scenario: Scenario, times: ChunkTimes) -> Array:
    pipelines = step_seconds(
        scenario.schedule, scenario.pipeline, scenario.micro_batches, scenario.virtual_stages, times
    )
    slowest: Array = pipelines.max(axis=-1) + scenario.update
    return slowest


def _draw(scenario: Scenario, random: np.random.Generator, steps: int) -> ChunkTimes:
    """Draw the times of all pipelines in some steps: [p * v, steps, replicas]."""
    shape = (steps, scenario.replicas, scenario.pipeline, scenario.tensor)
    factors = _noise(random, scenario.jitter, shape)
    if scenario.straggler_share:
        factors = np.where(random.random(shape) < scenario.straggler_share, factors * scenario.slowdown, factors)
    for rank, factor in scenario.slow_ranks.items():
        pipeline, tensor = divmod(rank, scenario.tensor)
        replica, stage = divmod(pipeline, scenario.pipeline)
        factors[:, replica, stage, tensor] *= factor
    links = _noise(random, scenario.link_jitter, shape[:3])
    return scenario.chunk_times(np.moveaxis(factors.max(axis=-1), -1, 0), np.moveaxis(links, -1, 0))


def _noise(random: np.random.Generator, deviation: float, shape: tuple[int, ...]) -> Array:
    """Draw factors of mean 1 and a standard deviation from a log-normal distribution."""
    if not deviation:
        return np.ones(shape)
    variance = np.log1p(deviation**2)
    drawn: Array = random.lognormal(-variance / 2, np.sqrt(variance), shape)
    return drawn
