"""A session fails if a process that its tests started still runs at its end, also an orphan in another session."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.processes import is_running

ROOT = Path(__file__).parents[1]
SAMPLE = """
import multiprocessing
import subprocess

def test_leaves():
    subprocess.run(["sh", "-c", "setsid sleep {seconds} > log 2>&1 &"], check=True)

def test_uses_a_server():
    context = multiprocessing.get_context("forkserver")
    process = context.Process(target=print)
    process.start()
    process.join()
"""


@pytest.mark.parametrize(("seconds", "code"), [(0.2, 0), (100, 1)])
def test_remaining_processes_are_listed_and_killed(seconds, code, tmp_path):
    (tmp_path / "test_sample.py").write_text(SAMPLE.format(seconds=seconds))
    plugins = ["-p", "tests.helpers.leftovers", "-p", "no:cacheprovider", "--rootdir", tmp_path]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", *plugins, tmp_path],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == code, ended.stdout
    left = re.findall(r"^(\d+): (.*)$", ended.stdout, re.M)
    assert [command for _, command in left] == (["sleep 100"] if code else [])
    assert not [pid for pid, _ in left if is_running(int(pid))]
