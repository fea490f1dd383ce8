"""The library of the CPU kernels, which is built once on a machine."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import rms_norm_native as native


@pytest.fixture(scope="session")
def library():
    """The library of the CPU kernels that `fused_ln` itself uses."""
    from fused_ln import binding  # imports Paddle

    return native.load_cpu(binding.library().with_name(binding.KERNELS))
