"""The result of a simulation as data and as text."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from paddle_llm.core.counts import counted
from paddle_llm.planner.pipeline.events import Array
from paddle_llm.planner.simulation.goodput import (
    Failures,
    Goodput,
    compare_intervals,
    daly_interval,
    expected_share,
    job_seconds,
    young_interval,
)
from paddle_llm.planner.simulation.step_times import StepTimes


def step_result(steps: StepTimes) -> dict[str, float]:
    """Return the distribution of the step time, in milliseconds."""
    return {
        "simulated_steps": len(steps.seconds),
        "ideal_ms": steps.ideal * 1e3,
        "idle_share": steps.idle_share,
        "mean_ms": steps.mean * 1e3,
        **{f"p{share}_ms": steps.quantile(share / 100) * 1e3 for share in (5, 50, 95, 99)},
        "max_ms": steps.quantile(1) * 1e3,
        "slower_than_ideal": round(steps.mean / steps.ideal - 1, 9) + 0.0,  # no -0.0 for equal times
    }


def failure_result(steps: StepTimes, failures: Failures, max_steps: int | None, seed: int) -> dict[str, Any]:
    """Return the best checkpoint interval and the duration of a job.

    Args:
        steps: Simulated steps, for the mean and the ideal step time.
        failures: What interrupts the job.
        max_steps: Steps of the job; None for no duration.
        seed: Seed of the random numbers.
    """
    compared = compare_intervals(steps.mean, failures, seed)
    best = max(compared, key=lambda one: one.share)
    result: dict[str, Any] = {
        "mean_hours_between_failures": failures.mean_time / 3600,
        "best": _interval(best, steps.mean),
        "young": _by_formula(young_interval(failures), steps.mean, failures),
        "daly": _by_formula(daly_interval(failures), steps.mean, failures),
        "intervals": [asdict(one) for one in compared],
    }
    if max_steps:
        seconds = job_seconds(max_steps, best.steps, steps.mean, failures, seed)
        result["job"] = None
        if seconds is not None:
            ideal = max_steps * steps.ideal / 3600
            result["job"] = {"hours_without_disturbances": ideal, "hours": _spread(seconds / 3600)}
    return result


def _by_formula(seconds: float, step: float, failures: Failures) -> dict[str, float]:
    return {"steps": max(1, round(seconds / step)), "seconds": seconds, "goodput": expected_share(seconds, failures)}


def _spread(hours: Array) -> dict[str, float]:
    return {
        "mean": float(hours.mean()),
        **{f"p{share}": float(np.quantile(hours, share / 100)) for share in (10, 50, 90)},
    }


def _interval(one: Goodput, step: float) -> dict[str, float]:
    return {
        "steps": one.steps,
        "seconds": one.steps * step,
        "goodput": one.share,
        "standard_error": one.error,
        "expected_goodput": one.expected,
    }


def result_lines(result: dict[str, Any]) -> list[str]:
    """Return the lines that `paddle-llm simulate` prints.

    Args:
        result: World size, `step_result`, and `failure_result` or the hours of the job.
    """
    step = result["step"]
    lines = [
        f"{counted(result['world_size'], 'rank')}, {counted(step['simulated_steps'], 'simulated step')}",
        f"  step without disturbances  {step['ideal_ms']:,.1f} ms, a rank waits {step['idle_share']:.1%} of the pipeline's time",
        f"  mean step                  {step['mean_ms']:,.1f} ms ({step['slower_than_ideal']:+.1%})",
        "  quantiles                  "
        + ", ".join(f"{share} {step[f'p{share[:-1]}_ms']:,.1f} ms" for share in ("5%", "50%", "95%", "99%"))
        + f", largest {step['max_ms']:,.1f} ms",
    ]
    if "job_hours" in result:
        lines.append(f"  job                        {result['job_hours']:,.1f} h without failures and checkpoints")
    if "failures" in result:
        lines += _failure_lines(result["failures"])
    return lines


def _failure_lines(failures: dict[str, Any]) -> list[str]:
    best = failures["best"]
    lines = [
        f"a failure every {failures['mean_hours_between_failures']:,.1f} h",
        f"  best checkpoint interval   {counted(best['steps'], 'step')} ({_duration(best['seconds'])}): "
        f"goodput {best['goodput']:.1%} +- {best['standard_error']:.1%} simulated, {best['expected_goodput']:.1%} by the formula",
    ]
    for name in ("young", "daly"):
        one = failures[name]
        lines.append(
            f"  by the formula of {name.capitalize():<8} {counted(one['steps'], 'step')} ({_duration(one['seconds'])}): "
            f"goodput {one['goodput']:.1%} by the formula"
        )
    if "job" in failures:
        lines.append(_job_line(failures["job"]))
    return lines


def _job_line(job: dict[str, Any] | None) -> str:
    if job is None:
        return "  job                        does not end: failures are more frequent than checkpoints"
    hours = job["hours"]
    return (
        f"  job                        {hours['mean']:,.1f} h (10%: {hours['p10']:,.1f} h, 90%: {hours['p90']:,.1f} h), "
        f"{job['hours_without_disturbances']:,.1f} h without disturbances"
    )


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
