"""`run_ranks` runs a function on N ranks; the same ranks work under `paddle.distributed.launch`."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from paddle_llm.rehearse.ranks import RankError, run_ranks
from tests.helpers.launcher_output import launcher_report
from tests.helpers.processes import descendants, running, wait_until

REPOSITORY = Path(__file__).resolve().parents[2]


def add(number: int) -> tuple[int, int]:
    return int(os.environ["PADDLE_TRAINER_ID"]), number + int(os.environ["PADDLE_TRAINERS_NUM"])


def misbehave(how: str) -> str:
    if os.environ["PADDLE_TRAINER_ID"] == "1":
        if how == "raise":
            raise KeyError("a key")
        if how == "die":
            os._exit(7)
        if how == "interrupt":
            raise KeyboardInterrupt
        if how == "interrupt early":
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
        time.sleep(100)
    return "fine"


@pytest.mark.parametrize("how", ["interrupt", "interrupt early"])
def test_an_interrupted_rank_interrupts_its_caller(how):
    """A terminal sends Ctrl-C to all of its processes; a rank may end before this process receives it."""
    with pytest.raises(KeyboardInterrupt, match="rank 1"):
        run_ranks(misbehave, 2, how)


def test_results_are_returned_by_rank():
    assert run_ranks(add, 3, 10) == [(0, 13), (1, 13), (2, 13)]


@pytest.mark.parametrize(
    ("how", "message", "timeout"),
    [
        ("raise", "rank 1 raised:\nTraceback .*KeyError: 'a key'", 120),
        ("die", "rank 1 died with exit code 7", 120),
        ("hang", r"did not finish within 15 s, killed: ranks 1$", 15),
    ],
)
def test_a_failure_is_reported_with_the_rank(how, message, timeout):
    with pytest.raises(RankError) as failure:
        run_ranks(misbehave, 3, how, timeout=timeout, grace=60)
    assert re.search(message, str(failure.value), re.DOTALL)
    assert failure.value.rank == 1 and isinstance(failure.value.exception, KeyError) == (how == "raise")
    assert [outcome.value for outcome in failure.value.outcomes] == ["fine", None, "fine"]


SCRIPT = """
import os, signal, sys
from paddle_llm.parallel.process.start import start_process
start_process("cpu", 2)
import paddle
paddle.distributed.init_parallel_env()
rank = paddle.distributed.get_rank()
total = paddle.to_tensor([rank + 1])
paddle.distributed.all_reduce(total)
print("total", total.item(), flush=True)
if sys.argv[1] == "kill":
    if rank == 1:
        # The launcher ends rank 0 as soon as it notices the loss. It continues when rank 0 has reported it.
        os.kill(os.getppid(), signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGKILL)
    paddle.distributed.all_reduce(total)
"""


@pytest.mark.parametrize("mode", ["end", "kill"])
def test_ranks_work_under_the_launcher(mode, tmp_path):
    """Also with CUDA_VISIBLE_DEVICES: the launcher then assigns GPUs to the ranks, and no backend."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [
        sys.executable,
        "-m",
        "paddle.distributed.launch",
        "--nproc_per_node",
        "2",
        "--log_dir",
        "log",
        script,
        mode,
    ]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "CUDA_VISIBLE_DEVICES": "0,1"}
    files = [tmp_path / "log" / f"workerlog.{rank}" for rank in range(2)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, **pipes) as job:
        try:
            if mode == "kill":
                wait_until(lambda: files[0].exists() and "rank 1 is gone" in files[0].read_text(), 120, "the report")
        finally:
            job.send_signal(signal.SIGCONT)
            out, err = job.communicate(timeout=120)
    done = subprocess.CompletedProcess(command, job.returncode, out, err)
    logs = [file.read_text() for file in files]
    assert all("total 3" in log for log in logs), launcher_report(done, tmp_path / "log")
    assert (done.returncode == 0) == (mode == "end"), launcher_report(done, tmp_path / "log")
    assert ("rank 1 is gone" in logs[0]) == (mode == "kill")


def _device_of_this_rank() -> tuple[str | None, ...]:
    return (
        os.environ.get("CUDA_VISIBLE_DEVICES"),
        os.environ.get("FLAGS_selected_gpus"),  # noqa: SIM112
        os.environ.get("PADDLE_DISTRI_BACKEND"),
        multiprocessing.get_start_method(),
    )


def test_ranks_on_gpus_have_one_gpu_each_and_are_not_forked(monkeypatch):
    """CUDA cannot be used after a fork; tests/gpu tests what the ranks do with their GPUs."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    assert run_ranks(_device_of_this_rank, 2, device="gpu") == [
        ("4,7", "0", "nccl", "spawn"),
        ("4,7", "1", "nccl", "spawn"),
    ]
    assert run_ranks(_device_of_this_rank, 1) == [("", None, "gloo", "forkserver")]


CALLER = """
import sys
from paddle_llm.rehearse.ranks import run_ranks
from tests.parallel.test_run_ranks import wait_for_long
run_ranks(wait_for_long, 2, sys.argv[1], timeout=200)
"""


def wait_for_long(folder: str) -> None:
    (Path(folder) / os.environ["PADDLE_TRAINER_ID"]).write_text(str(os.getpid()))
    time.sleep(200)


def test_ranks_end_when_their_caller_is_killed(tmp_path):
    caller = subprocess.Popen([sys.executable, "-c", CALLER, str(tmp_path)], cwd=REPOSITORY)
    marks = [tmp_path / "0", tmp_path / "1"]
    wait_until(lambda: all(mark.exists() and mark.read_text() for mark in marks), 150, "the ranks have started")
    started = descendants(caller.pid)
    assert {int(mark.read_text()) for mark in marks} < set(started)
    caller.kill()
    caller.wait()
    wait_until(lambda: not running(started), 30, "the ranks and their server have ended")
