"""Tests of real GPUs. A test is skipped with the reason if this machine or its Paddle has too few GPUs.

A test with the parameter `device` runs on the CPU and, if available, on a GPU, so that its logic is tested on any machine.
The mark `gpu` is on all tests of this folder that need a GPU; `make test-gpu` runs these.
"""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from paddle_llm.config.device import find_device, why_no_gpu
from tests.helpers.skips import needs

FOLDER = Path(__file__).parent
DEVICES = ("cpu", "gpu")


@cache
def gpus() -> int:
    """Return the number of GPUs that Paddle sees, found in a separate process, so that this one does not use CUDA."""
    if find_device() != "gpu":
        return 0
    code = "import paddle; print(paddle.device.cuda.device_count())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "gpu: needs a GPU and a GPU build of Paddle")
    config.addinivalue_line("markers", "gpus(n): needs n GPUs if it runs on GPUs")
    config.addinivalue_line("markers", "cpu_only: belongs to the tests of GPUs and needs none")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "device" in metafunc.fixturenames:
        metafunc.parametrize("device", DEVICES)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if FOLDER not in item.path.parents or item.get_closest_marker("cpu_only"):
            continue
        chosen = getattr(item, "callspec", None)
        if chosen is None or chosen.params.get("device") != "cpu":
            item.add_marker(pytest.mark.gpu)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test before its fixtures are created."""
    if item.get_closest_marker("gpu") is None:
        return
    marker = item.get_closest_marker("gpus")
    needed = marker.args[0] if marker else 1
    found = gpus()
    if found < needed:
        why = why_no_gpu() or f"this machine has {found}"
        needs("a GPU", False, f"{needed} for this test; {why}")
