"""A short run of benchmarks/fuzz_foreign_files.py: no hostile file causes a traceback, a crash or a silent difference."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "fuzz_foreign_files.py"


@pytest.mark.parametrize("count", [204, pytest.param(5000, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])])
def test_no_faults(count):
    command = [sys.executable, SCRIPT, "--count", str(count), "--seed", "3", "--limit", "120", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode in (0, 1), done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert len(found) == count
    fine = ("equal", "accepted", "reported", "refused")
    faults = [one for one in found if one["outcome"] not in fine]
    assert not faults, json.dumps(faults, ensure_ascii=False, indent=1)
    for kind in {one["kind"] for one in found}:
        outcomes = {one["outcome"] for one in found if one["kind"] == kind}
        assert len(found) < 1000 or outcomes & {"equal", "accepted"}, (
            f"nothing of {kind} is read: the variants are too hostile"
        )
