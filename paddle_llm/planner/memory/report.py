"""The memory of a config as data and as text."""

from __future__ import annotations

from typing import Any

from paddle_llm.planner.gpus import Gpu
from paddle_llm.planner.job import Job
from paddle_llm.planner.memory.plan import fullest_rank

_GIB = 2**30
# Methods whose activations the plan follows; of the others it counts weights and states.
_FOLLOWED = ("full", "lora", "freeze")


def memory_of(job: Job, gpu: Gpu) -> dict[str, Any]:
    """Return the memory of the rank that needs most, its components in bytes, and whether the device has as much."""
    most = fullest_rank(job)
    return {
        "stage": most.stage,
        "phase": most.phase,
        "total_bytes": most.total,
        "device_bytes": gpu.memory_bytes,
        "fits": most.total <= gpu.memory_bytes,
        "components": most.components,
    }


def notes_on_memory(job: Job) -> list[str]:
    """Return what the plan of the memory does not count."""
    if job.method.name in _FOLLOWED:
        return []
    return [f"memory: the activations that {job.method.name} adds are not counted, only its weights and states"]


def memory_lines(memory: dict[str, Any]) -> list[str]:
    """Return the lines that `paddle-llm plan` prints.

    Args:
        memory: Result of `memory_of`.
    """
    total, device = memory["total_bytes"], memory["device_bytes"]
    free = (device - total) / device
    verdict = (
        f"fits, {free:.0%} free" if memory["fits"] else f"does not fit: {(total - device) / _GIB:.1f} GiB too much"
    )
    lines = [
        f"memory of the fullest rank (stage {memory['stage']}, {memory['phase']})",
        f"  {'total':<28} {total / _GIB:6.1f} GiB of {device / _GIB:.1f} GiB: {verdict}",
    ]
    for name, nbytes in memory["components"].items():
        if nbytes:
            lines.append(f"  {name.replace('_', ' '):<28} {nbytes / _GIB:6.1f} GiB")
    return lines
