"""A process ends when the process that it works for is killed; a run without a launcher continues after its shell."""

from __future__ import annotations

import inspect
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.processes import is_running, running, wait_until, wait_until_blocked

ROOT = Path(__file__).parents[3]
RANK = """
import os, sys, time
from paddle_llm.parallel.process.parent import end_with_launcher
end_with_launcher()
open(sys.argv[1], "w").write(str(os.getpid()))
time.sleep(200)
"""
# What paddle.distributed.launch does: a child in a new session, with the variable that the launcher does not have.
LAUNCHER = """
import os, subprocess, sys, time
environment = os.environ | {"PADDLE_BACKUP_ENV_PATH": "log/backup_env.0.json", "PADDLE_TRAINER_ID": "0"}
subprocess.Popen(sys.argv[1:], env=environment, start_new_session=True)
time.sleep(200)
"""


def start(*command: str) -> subprocess.Popen:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PADDLE_")}
    return subprocess.Popen(command, cwd=ROOT, env=environment | {"PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE)


def rank_of(mark: Path) -> int:
    """Return the process id that a rank has written to the file `mark`."""
    wait_until(lambda: mark.exists() and mark.read_text(), 100, "the rank has started")
    return int(mark.read_text())


def kill(process: subprocess.Popen) -> bytes:
    """Kill a process, and return what it and its children printed on stderr."""
    process.kill()
    _, printed = process.communicate()
    return printed


@pytest.mark.parametrize("wrapper", [[], ["bash", "-c", '"$@"; exit', "wrapper"]], ids=["direct", "through a script"])
def test_a_rank_ends_when_its_launcher_is_killed(wrapper, tmp_path):
    rank_command = [*wrapper, sys.executable, "-c", RANK, str(tmp_path / "rank")]
    launcher = start(sys.executable, "-c", LAUNCHER, *rank_command)
    rank = rank_of(tmp_path / "rank")
    printed = kill(launcher)
    wait_until(lambda: not is_running(rank), 30, "the rank has ended")
    assert printed.decode() == "rank 0: the launcher has ended; this rank stops\n"


def test_a_rank_ends_when_its_launcher_has_ended_before_it_checks(tmp_path):
    """The parent of an orphan is init or a session manager; here it is a shell of such a name."""
    manager = shutil.copy(shutil.which("sh"), tmp_path / "tini")
    script = 'export PADDLE_BACKUP_ENV_PATH=log/backup_env.0.json; "$@"; exit $?'
    rank = start(str(manager), "-c", script, "tini", sys.executable, "-c", RANK, str(tmp_path / "rank"))
    _, printed = rank.communicate(timeout=100)
    assert rank.returncode == 75 and b"the launcher has ended" in printed


def test_a_run_without_a_launcher_continues_after_its_shell(tmp_path):
    command = f'setsid {sys.executable} -c "$0" "$1" & wait'
    shell = start("bash", "-c", command, RANK, str(tmp_path / "run"))
    run = rank_of(tmp_path / "run")
    shell.kill()
    shell.wait()
    try:
        with pytest.raises(AssertionError):
            wait_until(lambda: not is_running(run), 2, "the run has ended")
    finally:
        os.kill(run, signal.SIGKILL)
    shell.communicate()


LOADER = """
import os, sys, time
import numpy as np
import paddle
from paddle_llm.parallel.process.parent import worker_initializer

class Rows(paddle.io.Dataset):
    def __len__(self):
        return 1000
    def __getitem__(self, index):
        return np.zeros([4096], "float32")

loader = paddle.io.DataLoader(Rows(), batch_size=2, num_workers=2, worker_init_fn=worker_initializer())
batches = iter(loader)
next(batches)
open(sys.argv[1], "w").write(" ".join(str(worker.pid) for worker in batches._workers))
time.sleep(200)
"""


def test_workers_end_when_their_rank_is_killed(tmp_path):
    rank = start(sys.executable, "-c", LOADER, str(tmp_path / "workers"))
    wait_until(lambda: (tmp_path / "workers").exists() and (tmp_path / "workers").read_text(), 150, "a batch was read")
    workers = [int(pid) for pid in (tmp_path / "workers").read_text().split()]
    assert running(workers) == workers
    wait_until_blocked(workers)  # they have written all batches that they read ahead
    kill(rank)
    wait_until(lambda: not running(workers), 30, "the workers have ended")
    assert not [path for pid in workers for path in Path("/dev/shm").glob(f"paddle_{pid}_*")]


def test_paddles_worker_waits_without_a_timeout():
    """If this fails, Paddle has fixed it, and `worker_initializer` may be removed."""
    from paddle.io.dataloader.worker import _worker_loop

    assert "indices_queue.get(MP_STATUS_CHECK_INTERVAL)" in inspect.getsource(_worker_loop)
