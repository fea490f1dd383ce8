"""A job on two machines that loses one continues on the other: half the data ranks, twice the accumulation, the same samples."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from paddle_llm.config.reader import Resolved, resolve
from paddle_llm.core.errors import EXIT_RESUME, UserError
from paddle_llm.rehearse.ranks import run_ranks
from paddle_llm.training.launch.elastic import ElasticNodes, NodeStart
from paddle_llm.training.launch.rendezvous import REJOIN_VARIABLE
from tests.distributed.test_training_commands import PAUSE
from tests.helpers.corpus import make_corpus
from tests.helpers.finetune_jobs import finetune, flags_of, job, make_instructions
from tests.helpers.models.tiny import write_llama
from tests.helpers.pretrain_jobs import rows
from tests.helpers.processes import descendants, running, wait_until

ROOT = Path(__file__).parents[2]
ALONE = "--data_parallel_degree 1 --sharding_parallel_degree 1 --gradient_accumulation_steps"


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def assert_same_training(found: Path, expected: Path) -> None:
    """Compare the rows of two runs: the samples that were used are equal, losses and norms within rounding of float32."""
    mine, theirs = ([row for row in rows(output) if "loss" in row] for output in (found, expected))
    for key in ("step", "consumed_samples", "consumed_tokens", "learning_rate"):
        assert [row[key] for row in mine] == [row[key] for row in theirs], key
    for key, limit in (("loss", 1e-5), ("grad_norm", 1e-3)):
        assert [row[key] for row in mine] == pytest.approx([row[key] for row in theirs], rel=limit), key


# ---- the start of each machine, and a training with its flags


def machines(resolved: Resolved, count: int, **changes) -> list[ElasticNodes]:
    master = f"127.0.0.1:{free_port()}"
    settings = {"nodes": count, "min_nodes": 1, "master": master} | changes
    return [ElasticNodes(resolved, node_rank=rank, **settings) for rank in range(count)]


def start_all(nodes: list[ElasticNodes]) -> list[NodeStart]:
    with ThreadPoolExecutor(len(nodes)) as threads:
        return list(threads.map(ElasticNodes.next_start, nodes))


@pytest.fixture
def at_once(monkeypatch):
    """A restart does not wait for other machines."""
    monkeypatch.setenv(REJOIN_VARIABLE, "0.01")


def test_a_fine_tuning_continues_on_one_of_two_machines(at_once, tmp_path, capsys):
    folder = make_instructions(tmp_path / "job")
    settings = {"data_parallel_degree": 2, "logging_steps": 1, "do_eval": None, "evaluation_strategy": None}
    settings["eval_steps"] = None
    words = flags_of(folder, folder / "elastic", **settings)
    first, second = machines(resolve(words, world_size=2, entry="finetune"), 2)
    assert start_all([first, second]) == [NodeStart(2, 0, []), NodeStart(2, 1, [])]
    finetune(folder, folder / "whole", 2, **settings)
    finetune(folder, folder / "elastic", 2, until=3, **settings)
    capsys.readouterr()
    alone = first.next_start()
    assert alone == NodeStart(1, 0, f"{ALONE} 4".split())
    assert (
        "continues on 1 of 2 machines: layout dp2 -> one process, gradient accumulation 2 -> 4, global batch 8 as before"
        in capsys.readouterr().err
    )
    run_ranks(job, 1, [*words, *alone.flags], 1, None, timeout=180, quiet=True)
    assert_same_training(folder / "elastic", folder / "whole")


def _resolved(folder: Path, *flags: str, ranks: int) -> Resolved:
    model = write_llama(folder / "llama", num_attention_heads=4)
    words = ["--model_name_or_path", str(model), "--input_dir", "c", "--output_dir", "o", "--do_train", *flags]
    return resolve([*words, "--max_seq_length", "64"], world_size=ranks, device="cpu")


def test_all_machines_again_have_the_original_layout(tmp_path, monkeypatch):
    """Also after a restart on one of them."""
    resolved = _resolved(tmp_path, "--sharding", "stage2", "--do_eval", "--eval_iters", "5", ranks=4)
    monkeypatch.setenv(REJOIN_VARIABLE, "0.01")
    nodes = machines(resolved, 4)
    assert [start.flags for start in start_all(nodes)] == [[]] * 4
    assert nodes[0].next_start() == NodeStart(1, 0, f"{ALONE} 4 --eval_iters 20".split())
    for node in nodes:
        node._seconds = 120.0
    assert start_all(nodes) == [NodeStart(4, rank, []) for rank in range(4)]


@pytest.mark.parametrize(
    ("flags", "ranks", "nodes", "message"),
    [
        ("--tensor_parallel_degree 4", 4, 2, "1 machine with 2 ranks: tensor 4 x pipeline 1 = 4 does not divide 2"),
        (
            "",
            3,
            3,
            "2 machines with 2 data ranks: the global batch of 3 samples in micro-batches of 1 cannot be divided by 2",
        ),
    ],
)
def test_a_job_that_cannot_shrink_is_refused_before_it_starts(flags, ranks, nodes, message, tmp_path):
    with pytest.raises(UserError, match="the job has no layout on fewer than") as refused:
        machines(_resolved(tmp_path, *flags.split(), ranks=ranks), nodes, min_nodes=max(nodes - 1, 1))
    assert message in str(refused.value)


def test_fewer_machines_than_the_minimum_end_with_code_75(at_once, tmp_path, capsys):
    nodes = machines(_resolved(tmp_path, ranks=4), 4, min_nodes=2)
    start_all(nodes)
    with pytest.raises(SystemExit) as end:
        nodes[0].next_start()
    assert end.value.code == EXIT_RESUME
    assert (
        "1 of 4 machines registered within 0 s, fewer than --min_nodes 2. Start again to resume."
        in capsys.readouterr().err
    )


# ---- real launchers on two "machines", each with one rank

FLAGS = """
--model_name_or_path {corpus}/llama --tokenizer_name_or_path {corpus}/tokenizer --input_dir {corpus}/data --output_dir {output}
--max_seq_length 64 --per_device_train_batch_size 1 --gradient_accumulation_steps 2 --learning_rate 1e-3 --max_steps 8
--save_steps 3 --logging_steps 1 --do_train --device cpu --report_to none
"""


def _environment(folder: Path, **changes: str) -> dict[str, str]:
    """Return the environment of a machine whose rank 1 stops itself (SIGSTOP) after the first checkpoint."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PADDLE_", "CUDA_"))}
    times = {"PADDLE_LLM_PEER_TIMEOUT": "60", REJOIN_VARIABLE: "3"}
    return kept | {"PYTHONPATH": f"{folder}:{ROOT}", "PYTHON": sys.executable, "PAUSE": str(folder)} | times | changes


def _command(node: int, port: int, words: list[str], folder: Path) -> subprocess.Popen[str]:
    """Start a machine with `paddle-llm pretrain`."""
    options = ["--nnodes", "2", "--min_nodes", "1", "--master", f"127.0.0.1:{port}", "--node_rank", str(node)]
    options += ["--nproc_per_node", "1", "--max_restarts", "2", "--log_dir", str(folder / "log")]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    command = [sys.executable, "-m", "paddle_llm.cli", "pretrain", *words, *options]
    return subprocess.Popen(command, cwd=folder, env=_environment(folder), **pipes)


def _script(node: int, port: int, words: list[str], folder: Path) -> subprocess.Popen[str]:
    """Start a machine with launch/many_machines.sh."""
    settings = {"MASTER": f"127.0.0.1:{port}", "NODES": "2", "MIN_NODES": "1", "NODE_RANK": str(node), "RANKS": "1"}
    settings |= {"DEVICE": "cpu", "MAX_RESTART": "2", "LOG_DIR": str(folder / "log")}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    command = ["bash", str(ROOT / "launch" / "many_machines.sh"), *words]
    return subprocess.Popen(command, cwd=folder, env=_environment(folder, **settings), **pipes)


def _lose(machine: subprocess.Popen[str]) -> None:
    """Kill all processes of a machine."""
    processes = [machine.pid, *descendants(machine.pid)]
    for process in processes:  # none of them can react to the end of another one
        os.kill(process, signal.SIGSTOP)
    for process in processes:
        os.kill(process, signal.SIGKILL)
    machine.communicate(timeout=60)
    wait_until(lambda: not running(processes), 60, "all processes of the machine have ended")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("start", [_command, _script])
def test_the_remaining_machine_trains_on_alone(start, tmp_path):
    (tmp_path / "corpus").mkdir()
    corpus = make_corpus(tmp_path / "corpus")
    words = shlex.split(FLAGS.format(corpus=corpus, output=tmp_path / "output"))
    (tmp_path / "sitecustomize.py").write_text(PAUSE)
    port = free_port()
    first, second = (start(node, port, words, tmp_path) for node in (0, 1))
    try:
        paused = (tmp_path / "paused").exists
        wait_until(lambda: paused() or first.poll() is not None, 240, "rank 1 has written its checkpoint")
        _lose(second)
        out, err = first.communicate(timeout=400)
    finally:
        for machine in (first, second):
            if machine.poll() is None:
                _lose(machine)
    assert first.returncode == 0, out + err
    assert "layout dp2 -> one process, gradient accumulation 2 -> 4, global batch 4 as before" in err, out + err
    log = (tmp_path / "log" / "node0" / "workerlog.0").read_text()
    assert "checkpoint-3 was saved on layout dp2 and is resumed on layout one process" in log + out + err
    whole = shlex.split(FLAGS.format(corpus=corpus, output=tmp_path / "whole"))
    command = [sys.executable, "-m", "paddle_llm.cli", "pretrain", *whole, "--nproc_per_node", "2", "--log_dir", "w"]
    (tmp_path / "released").touch()
    subprocess.run(command, cwd=tmp_path, env=_environment(tmp_path), check=True, capture_output=True, timeout=400)
    assert [row["step"] for row in rows(tmp_path / "output") if "loss" in row] == list(range(1, 9))
    assert_same_training(tmp_path / "output", tmp_path / "whole")
