"""Two jobs never write to one output folder; the lock of a job that has ended in any way is replaced."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from paddle_llm.checkpoint import output_lock
from paddle_llm.checkpoint.output_folder import choose_start
from paddle_llm.checkpoint.output_lock import (
    RUN_LOCK,
    STALE_SECONDS,
    WAIT_VARIABLE,
    hold_output_folder,
    release_output_folder,
)
from paddle_llm.core.errors import UserError
from tests.helpers.processes import is_running, wait_until

ROOT = Path(__file__).parents[2]
# Holds the lock until its stdin is closed.
HOLD = """
import sys
from paddle_llm.checkpoint.output_lock import hold_output_folder
from paddle_llm.core.errors import UserError
try:
    hold_output_folder(sys.argv[1])
except UserError as error:
    sys.exit(str(error))
print("held", flush=True)
sys.stdin.read()
"""


def other_job(folder: Path) -> subprocess.Popen:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], cwd=ROOT, **pipes)


def test_a_second_job_is_refused_until_the_first_is_killed(tmp_path, capsys):
    first = other_job(tmp_path)
    try:
        assert first.stdout.readline() == "held\n"
        with pytest.raises(UserError) as refused:
            hold_output_folder(tmp_path)
        assert f"in use by another job: process {first.pid} on host {socket.gethostname()}." in str(refused.value)
    finally:
        first.send_signal(signal.SIGKILL)
    wait_until(lambda: not is_running(first.pid), 30, "the job has ended")
    assert (tmp_path / RUN_LOCK).exists()
    hold_output_folder(tmp_path)  # the killed process is still a zombie
    first.communicate()
    assert f"is stale (process {first.pid} on host {socket.gethostname()} has ended)" in capsys.readouterr().err
    assert json.loads((tmp_path / RUN_LOCK).read_text())["pid"] == os.getpid()


def test_a_restart_waits_for_the_job_that_is_ending(tmp_path, monkeypatch):
    first, printed = other_job(tmp_path), []
    assert first.stdout.readline() == "held\n"

    def end_first_job(line: str) -> None:
        printed.append(line)
        first.kill()

    monkeypatch.setattr(output_lock, "say", end_first_job)
    monkeypatch.setenv(WAIT_VARIABLE, "100")
    hold_output_folder(tmp_path)
    first.communicate()
    assert f"in use by another job: process {first.pid}" in printed[0] and "is stale" in printed[1]
    monkeypatch.setenv(WAIT_VARIABLE, "long")
    with pytest.raises(UserError, match="not a number of seconds: long"):
        hold_output_folder(tmp_path / "other")


def test_a_lock_of_another_host_is_stale_after_five_minutes(tmp_path, capsys):
    lock = tmp_path / RUN_LOCK
    lock.write_text(json.dumps({"host": "elsewhere", "pid": 7, "started": "1", "boot": "x", "namespace": "y"}))
    with pytest.raises(UserError, match="process 7 on host elsewhere"):
        hold_output_folder(tmp_path)
    old = time.time() - STALE_SECONDS - 30
    os.utime(lock, (old, old))
    hold_output_folder(tmp_path)
    assert "process 7 on host elsewhere has not renewed it for 33" in capsys.readouterr().err


@pytest.mark.parametrize("change", [{"started": "1"}, {"pid": 1 << 22}])
def test_a_lock_with_a_reused_process_id_is_stale(change, tmp_path):
    hold_output_folder(tmp_path)
    lock = json.loads((tmp_path / RUN_LOCK).read_text())
    release_output_folder()
    (tmp_path / RUN_LOCK).write_text(json.dumps(lock | change))
    hold_output_folder(tmp_path)


def test_a_damaged_lock_is_judged_by_its_age(tmp_path):
    (tmp_path / RUN_LOCK).write_text("{")
    with pytest.raises(UserError, match="process unknown on host unknown"):
        hold_output_folder(tmp_path)


def test_one_of_several_jobs_takes_over_a_stale_lock(tmp_path):
    """Several jobs find the same stale lock at the same time."""
    killed = other_job(tmp_path)
    assert killed.stdout.readline() == "held\n"
    killed.kill()
    killed.communicate()
    jobs = [other_job(tmp_path) for _ in range(4)]
    wait_until(lambda: sum(job.poll() is not None for job in jobs) == 3, 100, "three jobs are refused")
    outcomes = [job.communicate(timeout=60)[0] for job in jobs]  # closes the stdin of the fourth
    assert sorted(outcomes) == ["", "", "", "held\n"]


def test_a_folder_without_hard_links_is_locked(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError("no hard links")

    monkeypatch.setattr(os, "link", refuse)
    hold_output_folder(tmp_path)
    assert json.loads((tmp_path / RUN_LOCK).read_text())["pid"] == os.getpid()
    assert os.listdir(tmp_path) == [RUN_LOCK]


def test_a_released_lock_leaves_no_file_or_new_folder(tmp_path):
    output = tmp_path / "new" / "output"
    hold_output_folder(output)
    hold_output_folder(output)  # a second training of one notebook
    assert choose_start(str(output), do_train=True, overwrite=False, resume=None) == (None, [])
    release_output_folder()
    assert not (tmp_path / "new").exists()
    hold_output_folder(output)
    (output / "metrics.jsonl").touch()
    release_output_folder()
    assert os.listdir(output) == ["metrics.jsonl"]
