"""The step time of a config as data and as text."""

from __future__ import annotations

from typing import Any

from paddle_llm.core.errors import UserError
from paddle_llm.planner.gpus import Gpu
from paddle_llm.planner.job import Job
from paddle_llm.planner.time.kernels import peak_of
from paddle_llm.planner.time.machine import machine_of
from paddle_llm.planner.time.step import mfu, step_time, tokens_per_second


def estimate(job: Job, gpu: Gpu, *, tokens: float | None, max_steps: int | None) -> tuple[dict[str, Any], str]:
    """Return the step time of a job, its parts, and what follows from it; and a message about the calibration.

    Args:
        job: Training.
        gpu: Device.
        tokens: Tokens of the whole training; None if unknown.
        max_steps: Steps of the whole training; None if unknown. `tokens` has precedence.

    Raises:
        UserError: If the device cannot compute in the type of the training.
    """
    machine, message = machine_of(gpu)
    if gpu.name == "cpu":
        raise UserError("--gpu cpu: step times on a CPU are not estimated. Use the name of a GPU.")
    if not peak_of(job, machine):
        raise UserError(
            f"--gpu {gpu.name} has no matrix products in {job.precision.compute}. Use another type, or another GPU."
        )
    time = step_time(job, machine)
    speed = tokens_per_second(job, time)
    result: dict[str, Any] = {
        "gpu": gpu.name,
        "gpus": job.layout.world_size,
        "layout": str(job.layout),
        "step_seconds": time.seconds,
        "parts": time.parts(),
        "tokens_per_step": job.tokens_per_step,
        "tokens_per_second": speed,
        "tokens_per_second_per_gpu": speed / job.layout.world_size,
        "mfu": mfu(job, time, machine),
    }
    steps = tokens / job.tokens_per_step if tokens else max_steps
    if steps:
        hours = steps * time.seconds / 3600
        result["training"] = {"steps": steps, "hours": hours, "gpu_hours": hours * job.layout.world_size}
    return result, message


def estimate_lines(result: dict[str, Any]) -> list[str]:
    """Return the lines that `paddle-llm plan` prints.

    Args:
        result: Result of `estimate`.
    """
    share = "" if result["mfu"] is None else f", MFU {result['mfu']:.1%}"
    lines = [
        f"{result['layout']} on {result['gpus']:,} x {result['gpu']}",
        f"  step                         {_seconds(result['step_seconds'])}{share}",
        f"  tokens per second            {result['tokens_per_second']:,.0f} ({result['tokens_per_second_per_gpu']:,.0f} per GPU)",
    ]
    if "training" in result:
        one = result["training"]
        lines.append(
            f"  whole training               {one['steps']:,.0f} steps, {one['hours']:,.1f} h, {one['gpu_hours']:,.0f} GPU hours"
        )
    lines.append("parts of the step")
    for name, seconds in result["parts"].items():
        if seconds:
            lines.append(f"  {name:<28} {_seconds(seconds):>10}  {seconds / result['step_seconds']:6.1%}")
    return lines


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.1f} ms"
