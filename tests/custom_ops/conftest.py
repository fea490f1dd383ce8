"""`fused_ln` of the source tree, built once for all tests."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "custom_ops"))


@pytest.fixture(scope="session")
def own_operator() -> None:
    """Build the operator, which is possible on every machine that runs the tests."""
    import fused_ln

    assert fused_ln.why_not("cpu") == ""
