"""How often to write a checkpoint, and how much of the time of a job is useful, if devices fail.

M is the mean time between failures of the job, C the time that one checkpoint stops training, R the time from a failure to
the next step. Work since the last checkpoint is lost. Failures may also occur during a checkpoint or a restart.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from paddle_llm.planner.pipeline.events import Array

_FAILURES = 20_000  # simulated failures
_INTERVALS = 61  # intervals that are compared
_RANGE = 12.0  # they reach from Young's interval divided by this to Young's interval times this
_BATCHES = 20  # of failures, for the standard error
_JOBS = 400  # simulated jobs
_MOST_FAILURES = 20_000  # of one simulated job


@dataclass(frozen=True)
class Failures:
    """What interrupts a job. Times are seconds.

    Attributes:
        mean_time: Mean time between failures of the job, M.
        checkpoint: Time that one checkpoint stops training, C.
        restart: Time from a failure to the next step, R.
    """

    mean_time: float
    checkpoint: float
    restart: float


@dataclass(frozen=True)
class Goodput:
    """Useful share of the time of a job for one checkpoint interval.

    Attributes:
        steps: Steps between two checkpoints.
        share: Seconds of kept steps as a share of all seconds, simulated.
        error: Standard error of `share`.
        expected: The same share by the closed formula.
    """

    steps: int
    share: float
    error: float
    expected: float


def young_interval(failures: Failures) -> float:
    """Return the seconds of training between checkpoints by Young's formula, sqrt(2 C M) (Communications of the ACM 17(9), 1974)."""
    return math.sqrt(2 * failures.checkpoint * failures.mean_time)


def daly_interval(failures: Failures) -> float:
    """Return the seconds of training between checkpoints by Daly's formula (Future Generation Computer Systems 22(3), 2006)."""
    ratio = failures.checkpoint / (2 * failures.mean_time)
    if ratio >= 1:
        return failures.mean_time
    return young_interval(failures) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - failures.checkpoint


def expected_share(seconds: float, failures: Failures) -> float:
    """Return the useful share of the time with exponential times between failures (Daly 2006).

    Args:
        seconds: Training between two checkpoints.
        failures: What interrupts the job.
    """
    mean = failures.mean_time
    exponent = (seconds + failures.checkpoint) / mean + failures.restart / mean
    growth = math.exp(min(exponent, 700.0)) - math.exp(min(failures.restart / mean, 700.0))
    return seconds / (mean * growth)


def compare_intervals(step: float, failures: Failures, seed: int) -> list[Goodput]:
    """Simulate a long job with different checkpoint intervals under the same failures.

    Args:
        step: Seconds of a step.
        failures: What interrupts the job.
        seed: Seed of the random numbers.

    Returns:
        One entry per interval, by increasing interval.
    """
    gaps = np.random.default_rng(seed).exponential(failures.mean_time, _FAILURES)
    young = young_interval(failures)
    wanted = np.geomspace(young / _RANGE, young * _RANGE, _INTERVALS) / step
    return [goodput(int(steps), step, failures, gaps) for steps in sorted({max(1, round(one)) for one in wanted})]


def goodput(steps: int, step: float, failures: Failures, gaps: Array) -> Goodput:
    """Return the useful share of the time of a long job.

    Args:
        steps: Steps between two checkpoints.
        step: Seconds of a step.
        failures: What interrupts the job.
        gaps: Seconds between failures; the first restart is that of the first failure.
    """
    segment = steps * step + failures.checkpoint
    kept = np.floor(np.maximum(gaps - failures.restart, 0) / segment) * steps * step
    parts = [
        float(some.sum() / time.sum())
        for some, time in zip(np.array_split(kept, _BATCHES), np.array_split(gaps, _BATCHES), strict=True)
    ]
    error = float(np.std(parts, ddof=1) / math.sqrt(_BATCHES))
    return Goodput(steps, float(kept.sum() / gaps.sum()), error, expected_share(steps * step, failures))


def job_seconds(total: int, steps: int, step: float, failures: Failures, seed: int) -> Array | None:
    """Simulate how long a job takes until its last step is in a checkpoint.

    Args:
        total: Steps of the job.
        steps: Steps between two checkpoints.
        step: Seconds of a step.
        failures: What interrupts the job.
        seed: Seed of the random numbers.

    Returns:
        Seconds of each simulated job; None if a job has not ended after 20,000 failures.
    """
    random = np.random.default_rng(seed)
    segments, rest = divmod(total, steps)
    segment = steps * step + failures.checkpoint
    last = rest * step + failures.checkpoint if rest else 0.0  # the last checkpoint comes at the end of the job
    done, elapsed = np.zeros(_JOBS), np.zeros(_JOBS)
    running = np.ones(_JOBS, dtype=bool)
    for number in range(_MOST_FAILURES):
        gap = random.exponential(failures.mean_time, _JOBS)
        restart = failures.restart if number else 0.0
        needed = restart + (segments - done) * segment + last
        ends = running & (gap >= needed)
        elapsed += np.where(running, np.minimum(gap, needed), 0)
        running &= ~ends
        if not running.any():
            return elapsed
        whole = np.floor(np.maximum(gap - restart, 0) / segment)
        done = np.minimum(done + np.where(running, whole, 0), segments)
    return None
