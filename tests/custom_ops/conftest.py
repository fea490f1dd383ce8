"""`fused_ln` as it lies in the source tree, built once for all tests."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "custom_ops"))


@pytest.fixture(scope="session")
def own_operator() -> None:
    """The operator, which any machine that runs the tests can build."""
    import fused_ln

    assert fused_ln.why_not("cpu") == ""
