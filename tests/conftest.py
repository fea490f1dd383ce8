"""What every test has: quiet libraries, a fixed environment, and product code in its initial state."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from paddle_llm.parallel.process.environment import mkl_cpu_type, read_cpuinfo
from tests.helpers.process_state import isolated

# Read when paddle is imported, by this process and by the ranks that tests start.
os.environ.setdefault("GLOG_minloglevel", "2")
if kind := mkl_cpu_type(read_cpuinfo()):
    os.environ.setdefault("MKL_DEBUG_CPU_TYPE", kind)


@pytest.fixture(autouse=True)
def product_state() -> Iterator[None]:
    """Reset what the product keeps in this process; it runs after the fixtures of the session and the module."""
    with isolated():
        yield
