"""Compiles the kernels once for all tests; the library is kept until a source changes."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import rms_norm_native as native


@pytest.fixture(scope="session")
def library(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory):
    """The library of the CPU kernels, as in an installation."""
    digest = hashlib.sha256(" ".join(native.CPU_FLAGS).encode())
    for source in sorted(native.CSRC.glob("rms_norm*")):
        digest.update(source.read_bytes())
    cache = getattr(pytestconfig, "cache", None)  # None with -p no:cacheprovider
    name = f"rms_norm_cpu_{digest.hexdigest()[:16]}"
    folder = Path(cache.mkdir(name)) if cache else tmp_path_factory.mktemp(name)
    path = folder / "librms_norm_cpu.so"
    if not path.exists():
        work = folder / "work"
        work.mkdir(exist_ok=True)
        native.build_cpu(work, ["-Wall", "-Wextra", "-Werror"]).rename(path)
    return native.load_cpu(path)
