"""Tests of real GPUs: skipped, each with the reason, where this machine or its Paddle has too few of them."""

from __future__ import annotations

import subprocess
import sys
from functools import cache

import pytest

from paddle_llm.config.device import find_device, why_no_gpu
from tests.helpers.skips import needs


@cache
def gpus() -> int:
    """GPUs that Paddle sees; asked in a process of its own, so that this one stays without CUDA."""
    if find_device() != "gpu":
        return 0
    code = "import paddle; print(paddle.device.cuda.device_count())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "gpus(n): needs n GPUs and a GPU build of Paddle")


@pytest.fixture(autouse=True)
def _enough_gpus(request: pytest.FixtureRequest) -> None:
    marker = request.node.get_closest_marker("gpus")
    needed = marker.args[0] if marker else 1
    found = gpus()
    if found < needed:
        why = why_no_gpu() or f"this machine has {found}"
        needs("a GPU", False, f"{needed} for this test; {why}")
