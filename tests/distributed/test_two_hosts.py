"""Ranks on two hosts whose names resolve to a loopback address or not at all; a host that loses its network."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from paddle_llm.core.errors import EXIT_RESUME
from tests.distributed.test_run_pretrain import TUTORIAL
from tests.helpers.corpus import make_corpus
from tests.helpers.hosts import Host, two_hosts
from tests.helpers.pretrain_jobs import numbers
from tests.helpers.processes import wait_until

ROOT = Path(__file__).parents[2]
SUM = """
from paddle_llm.parallel.process.start import start_process
start_process("cpu", 2)
import paddle
paddle.distributed.init_parallel_env()
total = paddle.to_tensor([paddle.distributed.get_rank() + 1])
paddle.distributed.all_reduce(total)
print("total", total.item(), flush=True)
"""
ON_ONE_HOST = """
from paddle_llm.rehearse.ranks import run_ranks
from tests.distributed.test_two_hosts import sum_of_ranks
print(run_ranks(sum_of_ranks, 2))
"""


def environment(**changes: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PADDLE_", "GLOO_"))}
    return kept | {"PYTHONPATH": str(ROOT), "PYTHON": sys.executable} | changes


def rank_environment(rank: int, hosts: tuple[Host, Host]) -> dict[str, str]:
    """Return the variables that the launcher sets for the only rank of a host whose name resolves to 127.0.1.1."""
    endpoint = "127.0.1.1:6170"
    return environment(
        PADDLE_TRAINER_ID=str(rank),
        PADDLE_TRAINERS_NUM="2",
        PADDLE_RANK_IN_NODE="0",
        PADDLE_NNODES="2",
        PADDLE_CURRENT_ENDPOINT=endpoint,
        PADDLE_TRAINER_ENDPOINTS=f"{endpoint},{endpoint}",
        PADDLE_MASTER=f"{hosts[0].address}:6171",
    )


def start(host: Host, *command: str, env: dict[str, str]) -> subprocess.Popen:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(host.command(*command), cwd=ROOT, env=env, **pipes)


@pytest.mark.parametrize(
    "names_resolve",
    [pytest.param(True, id="127.0.1.1"), pytest.param(False, id="no address", marks=pytest.mark.slow)],
)
def test_ranks_on_two_hosts_connect(names_resolve, tmp_path):
    with two_hosts(tmp_path, names_resolve=names_resolve) as hosts:
        jobs = [
            start(host, sys.executable, "-c", SUM, env=rank_environment(rank, hosts)) for rank, host in enumerate(hosts)
        ]
        for job, host in zip(jobs, hosts, strict=True):
            out, err = job.communicate(timeout=120)
            assert out == "total 3\n", err
            assert f"through the network interface {host.name}, address {host.address}: the route to 10.201.7.1" in err


def sum_of_ranks() -> int:
    import paddle

    from paddle_llm.parallel.gloo.backend import install_gloo_backend

    install_gloo_backend()
    paddle.distributed.init_parallel_env()
    total = paddle.to_tensor([paddle.distributed.get_rank() + 1])
    paddle.distributed.all_reduce(total)
    return int(total)


def test_a_rehearsal_runs_on_a_host_without_a_resolvable_name(tmp_path):
    with two_hosts(tmp_path, names_resolve=False) as (host, _):
        job = start(host, sys.executable, "-c", ON_ONE_HOST, env=environment())
        out, err = job.communicate(timeout=120)
        assert out == "[3, 3]\n", err


# ---- trainings, by launch/many_machines.sh


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("corpus"))


def flags(corpus: Path, output: Path) -> list[str]:
    return shlex.split(TUTORIAL.format(corpus=corpus, output=output))


@pytest.fixture(scope="module")
def on_one_host(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    command = [sys.executable, "-m", "paddle.distributed.launch", "--nproc_per_node", "2", "--log_dir", folder / "log"]
    command += ["run_pretrain.py", *flags(corpus, folder / "output")]
    subprocess.run(command, cwd=ROOT, env=environment(), check=True, capture_output=True, timeout=280)
    return numbers(folder / "output")


def train(hosts: tuple[Host, Host], words: list[str], folder: Path) -> list[subprocess.Popen]:
    settings = {"MASTER": f"{hosts[0].address}:6172", "NODES": "2", "DEVICE": "cpu", "RANKS": "1", "MAX_RESTART": "0"}
    settings |= {"LOG_DIR": str(folder), "PADDLE_LLM_PEER_TIMEOUT": "15"}
    script = ["bash", "launch/many_machines.sh", *words]
    return [start(host, *script, env=environment(**settings, NODE_RANK=str(node))) for node, host in enumerate(hosts)]


def outputs(jobs: list[subprocess.Popen]) -> list[str]:
    return ["".join(job.communicate(timeout=280)) for job in jobs]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_hosts_train_like_one_and_resume_after_losing_the_network(corpus, on_one_host, tmp_path):
    output = tmp_path / "output"
    first = output / "checkpoint-4"
    with two_hosts(tmp_path) as hosts:
        words = flags(corpus, output)
        jobs = train(
            hosts, [*words, "--max_steps", "4000", "--decay_steps", "8", "--warmup_ratio", "0"], tmp_path / "cut"
        )
        wait_until((first / "manifest.json").exists, 240, "the first checkpoint")
        hosts[1].connect(False)
        logs = outputs(jobs)
        assert [job.returncode for job in jobs] == [EXIT_RESUME] * 2, logs
        texts = [(tmp_path / "cut" / f"node{node}" / "workerlog.0").read_text() for node in (0, 1)]
        assert "rank 0: rank 1 is gone" in texts[0] and "rank 1: rank 0 is gone" in texts[1]
        for host, text in zip(hosts, texts, strict=True):
            assert f"through the network interface {host.name}" in text
        hosts[1].connect(True)
        jobs = train(hosts, [*words, "--resume_from_checkpoint", str(first)], tmp_path / "again")
        logs = outputs(jobs)
        assert [job.returncode for job in jobs] == [0, 0], logs
    assert numbers(output) == on_one_host
