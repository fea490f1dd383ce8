"""A rank that dies, freezes or raises is named by all other ranks, long before the timeout of the job."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from paddle_llm.core.errors import EXIT_RESUME
from paddle_llm.parallel.gloo.rendezvous import free_port
from paddle_llm.parallel.process import failure_detection
from paddle_llm.rehearse.ranks import RankError, run_ranks
from tests.helpers.processes import wait_until
from tests.parallel import lost_ranks


def outcomes_of(fn, world_size, *args, **kwargs):
    with pytest.raises(RankError) as failure:
        run_ranks(fn, world_size, *args, timeout=100, grace=20, **kwargs)
    return failure.value.outcomes


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("killed", "its process ended without an error message"),
        ("raised", "it raised ValueError: no such file: corpus.bin"),
        ("frozen", "no message for 5 s"),
    ],
)
def test_the_lost_rank_is_named_by_all(how, why):
    """`outcomes_of` waits 100 s, gloo and the job half an hour: a rank that waited for them would be "stuck"."""
    limit = "5" if how == "frozen" else "60"
    outcomes = outcomes_of(lost_ranks.lose, 4, how, env={"PADDLE_LLM_PEER_TIMEOUT": limit})
    for rank in range(3):
        assert f"rank {rank}: rank 3 is gone ({why}" in outcomes[rank].stderr
    # Rank 0 waits for rank 1, not for the lost rank, and the connections to a frozen rank stay open: both are ended.
    ended = [0, 1] if how == "frozen" else [0]
    for rank in ended:
        assert (outcomes[rank].state, outcomes[rank].exit_code) == ("died", EXIT_RESUME)
    for rank in {0, 1, 2} - set(ended):
        assert outcomes[rank].value.startswith(f"PeerLostError: rank 3 is gone ({why}")


def test_a_rank_that_does_not_communicate_is_ended_too():
    outcomes = outcomes_of(lost_ranks.lose_while_others_compute, 2)
    assert outcomes[0].exit_code == EXIT_RESUME
    assert "rank 0: rank 1 is gone" in outcomes[0].stderr


@pytest.mark.parametrize("recomputed", [False, True])
def test_a_loss_in_a_backward_pass_has_no_traceback(recomputed):
    """Paddle raises another error there, with the PeerLostError as its cause or without it."""
    lost = outcomes_of(lost_ranks.lose_in_backward, 2, recomputed)[0]
    assert lost.value == EXIT_RESUME, lost.trace
    assert "rank 0: rank 1 is gone" in lost.stderr


def test_ranks_that_end_normally_are_not_reported(capsys):
    assert run_ranks(lost_ranks.leave_one_by_one, 4) == ["ended"] * 4
    assert "is gone" not in capsys.readouterr().err


def test_a_collective_waits_as_long_as_the_job_allows():
    """And not longer: the timeout, which Paddle fixes at 30 s, is changed."""
    assert run_ranks(lost_ranks.wait_for_a_late_rank, 2, 60_000, 2.0) == ["in time", "in time"]
    assert "too late" in run_ranks(lost_ranks.wait_for_a_late_rank, 2, 2000, 20.0)


def test_ranks_on_gpus_end_when_one_is_killed():
    outcomes = outcomes_of(lost_ranks.on_gpus, 3, "killed")
    for rank in (0, 1):
        assert (outcomes[rank].state, outcomes[rank].exit_code) == ("died", EXIT_RESUME)
        assert f"rank {rank}: rank 2 is gone (its process ended without an error message" in outcomes[rank].stderr


NODE = """
import ctypes, os
from paddle.base import core
from paddle_llm.parallel.process import failure_detection
rank, size = int(os.environ["PADDLE_TRAINER_ID"]), int(os.environ["PADDLE_TRAINERS_NUM"])
host, port = os.environ["PADDLE_MASTER"].split(":")
store = core.TCPStore(host, int(port), rank == 0, size, 200)
failure_detection.GRACE_SECONDS = 1.0
failure_detection.start(store, max_silence=None)
open(f"rank{rank}", "w").write(str(os.getpid()))
ctypes.CDLL(None).sleep(250)
"""


@pytest.mark.slow
def test_the_launcher_of_the_other_node_ends_too(tmp_path):
    """The launcher's own master (HTTP) does not report a lost node to the others (3.3.1)."""
    (tmp_path / "node.py").write_text(NODE)
    launch = [sys.executable, "-m", "paddle.distributed.launch", "--master", f"127.0.0.1:{free_port()}"]
    launch += ["--host", "127.0.0.1", "--nnodes", "2", "--nproc_per_node", "1"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    nodes = [
        subprocess.Popen([*launch, "--rank", node, "--log_dir", f"log{node}", "node.py"], cwd=tmp_path, env=environment)
        for node in "01"
    ]
    marks = [tmp_path / "rank0", tmp_path / "rank1"]
    wait_until(lambda: all(mark.exists() and mark.read_text() for mark in marks), 150, "both ranks have started")
    os.kill(int(marks[1].read_text()), signal.SIGKILL)
    assert [node.wait(60) != 0 for node in nodes] == [True, True]
    assert "rank 0: rank 1 is gone" in (tmp_path / "log0" / "workerlog.0").read_text()


def test_a_busy_rank_on_a_gpu_is_not_lost():
    """Python is blocked for longer than the timeout of a CPU."""
    assert run_ranks(lost_ranks.on_gpus, 3, "busy", env={"PADDLE_LLM_PEER_TIMEOUT": "1"}) == ["continued"] * 3


def test_a_training_on_gpus_is_watched(tmp_path, monkeypatch):
    from paddle.distributed import collective

    from paddle_llm.config.layout import Layout
    from paddle_llm.config.run_config import RunConfig
    from paddle_llm.training.arguments import training_arguments

    started = []
    monkeypatch.setattr(failure_detection, "start", lambda store, max_silence: started.append((store, max_silence)))
    monkeypatch.setattr(collective, "_default_store", "the store of the job")
    training_arguments(RunConfig(output_dir=str(tmp_path), device="gpu"), Layout())
    assert started == [("the store of the job", None)]
    training_arguments(RunConfig(output_dir=str(tmp_path), device="cpu"), Layout())
    assert len(started) == 1  # there the first gloo group does it
