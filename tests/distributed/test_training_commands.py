"""`paddle-llm pretrain` and `finetune`: one process or many, restarts, signals, mistakes, and ranks of mpirun."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from paddle_llm.core.errors import UserError
from paddle_llm.training.launch.options import LaunchOptions, choose_cards
from tests.helpers.corpus import make_corpus
from tests.helpers.finetune_jobs import instructions
from tests.helpers.pretrain_jobs import numbers, rows
from tests.helpers.processes import descendants, running, wait_until
from tests.helpers.skips import needs

COMMAND = [sys.executable, "-m", "paddle_llm.cli"]
FLAGS = """
--model_name_or_path {corpus}/llama --tokenizer_name_or_path {corpus}/tokenizer --input_dir {corpus}/data --output_dir {output}
--max_seq_length 64 --per_device_train_batch_size 1 --learning_rate 1e-3 --max_steps 6 --decay_steps 6 --save_steps 3
--logging_steps 2 --do_train --device cpu --report_to none --sharding stage2
"""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def uninterrupted(corpus, tmp_path_factory):
    """The rows of a job of two ranks, and its output."""
    folder = tmp_path_factory.mktemp("whole")
    done = _run("pretrain", *_flags(corpus, folder / "output"), "--nproc_per_node", "2", cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return numbers(folder / "output"), done, folder


def _flags(corpus: Path, output: Path) -> list[str]:
    return shlex.split(FLAGS.format(corpus=corpus, output=output))


def _run(*words: str, cwd: Path, prefix: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    command = [*prefix, *COMMAND, *words]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=240, check=False)


def _start(*words: str, cwd: Path, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*COMMAND, *words], cwd=cwd, env=env, **pipes)


def test_the_output_is_that_of_rank_0_and_the_launcher_has_a_log(uninterrupted):
    _, done, folder = uninterrupted
    assert "step 6/6" in done.stdout and "2 ranks: sharding2(stage2)" in done.stdout
    assert "LAUNCH INFO" not in done.stdout + done.stderr
    assert "Modified FLAGS" not in done.stdout and "Current global rank" not in done.stdout
    assert "LAUNCH INFO" in (folder / "log" / "launcher.log").read_text()
    assert (folder / "log" / "workerlog.1").exists()


def test_one_process_needs_no_launcher(corpus, tmp_path):
    flags = _flags(corpus, tmp_path / "output")[: -len(("--sharding", "stage2"))]
    done = _run("pretrain", *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [row["step"] for row in rows(tmp_path / "output") if "loss" in row] == [2, 4, 6]
    assert not (tmp_path / "log").exists()


def test_fine_tuning(corpus, tmp_path):
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, instructions(8))))
    flags = "--dataset_name_or_path rows.jsonl --output_dir output --device cpu --max_length 64 --max_steps 2 --lora 1"
    model = ["--model_name_or_path", f"{corpus}/llama", "--tokenizer_name_or_path", f"{corpus}/tokenizer"]
    flags += " --per_device_train_batch_size 1 --do_train --report_to none --continue_training 0 --nproc_per_node 2"
    done = _run("finetune", *model, *flags.split(), cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "output" / "adapter").is_dir()


def test_mistakes_are_reported_together_before_a_process_starts(tmp_path):
    flags = (
        "--model_name_or_path nowhere/llama --input_dir nowhere/data --output_dir output --learing_rate 1 --device cpu"
    )
    done = _run("pretrain", *flags.split(), "--nproc_per_node", "2", cwd=tmp_path)
    assert done.returncode == 2 and done.stdout == ""
    assert "learing_rate" in done.stderr and "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_with_several_machines_the_output_folder_is_left_to_rank_0(corpus, tmp_path):
    """All machines check the config at the same time, on one file system."""
    (tmp_path / "output").write_text("a file")
    several = ["--nproc_per_node", "1", "--nnodes", "2", "--master", "127.0.0.1:1", "--learing_rate", "1"]
    done = _run("pretrain", *_flags(corpus, tmp_path / "output"), *several, cwd=tmp_path)
    assert done.returncode == 2 and "error: 1 problem" in done.stderr and "learing_rate" in done.stderr


@pytest.mark.parametrize(
    "options, message",
    [
        ("--nproc_per_node 2 --log_dir a_file", "error: --log_dir a_file cannot be written: "),
        ("--nproc_per_node 2 --log_dir a_file/log", "error: --log_dir a_file/log cannot be written: "),
        ("--gpus 0,1", "error: --gpus 0,1: the job would run on the CPU"),
        ("--nproc_per_node 2 --nnodes 2 --master localhost:70000", "error: --master localhost:70000 is not HOST:PORT."),
    ],
)
def test_mistakes_that_a_complete_config_shows(options, message, corpus, tmp_path):
    (tmp_path / "a_file").touch()
    done = _run("pretrain", *_flags(corpus, tmp_path / "output"), *options.split(), cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.startswith(message), done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["a_file"]


@pytest.mark.parametrize(
    "options, message",
    [
        ("--gpus 0,0", "not a list of different cards"),
        ("--gpus 0,", "not a list of different cards"),
        ("--gpus 0,1 --nproc_per_node 3", "contradict each other"),
        ("--nnodes 2", "needs --master HOST:PORT"),
        ("--master a:1", "is for jobs on several machines"),
        ("--nnodes 2 --master a:1 --node_rank 2", "the last machine of 2 is 1"),
        ("--min_nodes 1", "is for jobs on several machines"),
        ("--nnodes 2 --master a:1 --min_nodes 1", "is for restarts. Add --max_restarts N"),
        ("--nproc_per_node 0", "--nproc_per_node"),
    ],
)
def test_options_that_contradict_each_other(options, message, tmp_path):
    done = _run("pretrain", *options.split(), cwd=tmp_path)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr


def test_a_killed_rank_is_restarted_from_its_checkpoint(corpus, uninterrupted, tmp_path):
    """The rows are those of one run, although --overwrite_output_dir is given."""
    flags = [*_flags(corpus, tmp_path / "output"), "--overwrite_output_dir", "1", "--nproc_per_node", "2"]
    flags += ["--max_restarts", "1"]
    (tmp_path / "sitecustomize.py").write_text(PAUSE)
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}", "PAUSE": str(tmp_path)}
    with (tmp_path / "out").open("w") as out:
        job = subprocess.Popen([*COMMAND, "pretrain", *flags], cwd=tmp_path, stdout=out, stderr=out, env=environment)
        wait_until((tmp_path / "paused").exists, 120, "rank 1 has written its checkpoint")
        (tmp_path / "released").touch()  # later processes do not pause
        os.kill(int((tmp_path / "paused").read_text()), signal.SIGKILL)
        assert job.wait(timeout=240) == 0, (tmp_path / "out").read_text()
    printed = (tmp_path / "out").read_text()
    assert "Restart 1 of 1" in printed and printed.count("step 2/6") == 1
    assert "Local rank 1 ended with exit code" in printed or "rank 1 is gone" in printed
    assert numbers(tmp_path / "output") == uninterrupted[0]


# Suspends rank 1 after the checkpoint of step 3, so that the job cannot end before the rank is killed.
PAUSE = """
import os, pathlib, signal, threading, time
if os.environ.get("PADDLE_TRAINER_ID") == "1":
    folder = pathlib.Path(os.environ["PAUSE"])
    def watch():
        while not (folder / "released").exists():
            if (folder / "output" / "checkpoint-3" / "manifest.json").exists():
                (folder / "draft").write_text(str(os.getpid()))
                (folder / "draft").rename(folder / "paused")
                os.kill(os.getpid(), signal.SIGSTOP)
            time.sleep(0.005)
    threading.Thread(target=watch, daemon=True).start()
"""


# tests/training/test_stop.py has all three in one process.
@pytest.mark.parametrize(
    "number",
    [
        signal.SIGTERM,
        pytest.param(signal.SIGINT, marks=pytest.mark.slow),
        pytest.param(signal.SIGUSR1, marks=pytest.mark.slow),
    ],
)
def test_a_signal_saves_the_state_and_the_resumed_job_is_exact(number, corpus, uninterrupted, tmp_path):
    """The signal arrives in the second step or later; the job is not restarted, although --max_restarts is given."""
    flags = [*_flags(corpus, tmp_path / "output"), "--nproc_per_node", "2", "--max_restarts", "3"]
    (tmp_path / "sitecustomize.py").write_text(HOLD)
    path = {"PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}", "HOLD": str(tmp_path)}
    job = _start("pretrain", *flags, cwd=tmp_path, env=os.environ | path)
    wait_until((tmp_path / "held").exists, 120, "rank 1 has completed its first step")
    started = descendants(job.pid)
    job.send_signal(number)
    (tmp_path / "sent").touch()
    out, err = job.communicate(timeout=120)
    assert job.returncode == 75, out + err
    assert f"stopped: {number.name} was received by ranks 0, 1. The state after step" in out
    assert out.count("Start again to resume.") == 1 and "Restart" not in err and "Traceback" not in out + err
    assert not list((tmp_path / "output").glob("checkpoint-6"))
    wait_until(lambda: not running(started), 60, "all processes of the job have ended")
    again = _run("pretrain", *flags, cwd=tmp_path)
    assert again.returncode == 0 and "resuming from" in again.stdout, again.stdout + again.stderr
    assert numbers(tmp_path / "output") == uninterrupted[0]


# Holds rank 1 at the beginning of its second step until a signal was sent and has been received.
HOLD = """
import os, pathlib, signal, sys, time
if os.environ.get("PADDLE_TRAINER_ID") == "1":
    folder = pathlib.Path(os.environ["HOLD"])
    def wait(self, args, state, control, **kwargs):
        if state.global_step == 1:
            (folder / "held").touch()
            while not (folder / "sent").exists() or not stop_request.is_stop_requested():
                if stop_request.is_stop_requested():
                    (folder / "received").touch()
                time.sleep(0.01)
    class Finder:
        def find_spec(self, name, path=None, target=None):
            if name == "paddle_llm.training.rollback":
                sys.meta_path.remove(self)
                global stop_request
                from paddle_llm.parallel.process import stop_request
                from paddle_llm.training.trainers.step_flow import StepFlow
                StepFlow.on_step_begin = wait
    sys.meta_path.insert(0, Finder())
"""


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_a_signal_ends_the_job_and_all_its_processes(number, code, corpus, tmp_path):
    flags = [*_flags(corpus, tmp_path / "output"), "--max_steps", "100000", "--nproc_per_node", "2"]
    job = _start("pretrain", *flags, "--max_restarts", "3", "--save_on_exit", "0", cwd=tmp_path)
    metrics = tmp_path / "output" / "metrics.jsonl"
    wait_until(lambda: metrics.exists() and metrics.stat().st_size, 120, "the job trains")
    started = descendants(job.pid)
    job.send_signal(number)
    out, err = job.communicate(timeout=120)
    assert job.returncode == code, err
    assert "Restart" not in err
    wait_until(lambda: not running(started), 60, "all processes of the job have ended")


def test_a_second_ctrl_c_ends_the_job_at_once(corpus, tmp_path):
    flags = [*_flags(corpus, tmp_path / "output"), "--nproc_per_node", "2", "--max_restarts", "3"]
    (tmp_path / "sitecustomize.py").write_text(HOLD)
    path = {"PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}", "HOLD": str(tmp_path)}
    job = _start("pretrain", *flags, cwd=tmp_path, env=os.environ | path)
    wait_until((tmp_path / "held").exists, 120, "rank 1 has completed its first step")
    started = descendants(job.pid)
    job.send_signal(signal.SIGINT)
    wait_until((tmp_path / "received").exists, 60, "rank 1 has received the first Ctrl-C")
    job.send_signal(signal.SIGINT)
    out, err = job.communicate(timeout=120)
    assert job.returncode == 130, out + err
    assert not list((tmp_path / "output").glob("checkpoint-*"))
    wait_until(lambda: not running(started), 60, "all processes of the job have ended")


def test_cards_that_are_not_visible():
    two = {"CUDA_VISIBLE_DEVICES": "4,5"}
    assert choose_cards(LaunchOptions(nproc_per_node=2), two) == ["4", "5"]
    assert choose_cards(LaunchOptions(nproc_per_node=2), {}) == ["0", "1"]
    assert choose_cards(LaunchOptions(nproc_per_node=1), {"CUDA_VISIBLE_DEVICES": "all"}) == ["0"]
    assert choose_cards(LaunchOptions(gpus="GPU-5d"), {"CUDA_VISIBLE_DEVICES": "2,GPU-5d"}) == ["GPU-5d"]
    assert choose_cards(LaunchOptions(gpus="5"), two) == ["5"]
    with pytest.raises(UserError, match="does not have card 0"):
        choose_cards(LaunchOptions(gpus="0,5"), two)
    with pytest.raises(UserError, match="has 2 cards"):
        choose_cards(LaunchOptions(nproc_per_node=3), two)


def test_cards_that_the_machine_does_not_have():
    """Paddle's launcher ends with an IndexError or a ValueError there, before any rank can report the mistake."""
    assert choose_cards(LaunchOptions(nproc_per_node=2), {}, present=2) == ["0", "1"]
    assert choose_cards(LaunchOptions(gpus="1"), {"CUDA_VISIBLE_DEVICES": "all"}, present=2) == ["1"]
    assert choose_cards(LaunchOptions(gpus="7"), {"CUDA_VISIBLE_DEVICES": "7"}, present=2) == [
        "7"
    ]  # numbers of the host
    with pytest.raises(UserError, match=r"needs 3 cards, and this machine has 2 cards\. Its cards are 0 to 1\."):
        choose_cards(LaunchOptions(nproc_per_node=3), {}, present=2)
    with pytest.raises(UserError, match=r"--gpus 0,5: this machine does not have card 5\. Its only card is 0\."):
        choose_cards(LaunchOptions(gpus="0,5"), {}, present=1)


@pytest.fixture
def mpirun():
    """The words that start two ranks with Open MPI."""
    needs("Open MPI", shutil.which("mpirun") is not None, "apt-get install openmpi-bin")
    return ("mpirun", "--allow-run-as-root", "--oversubscribe", "-n", "2")


def test_ranks_of_mpirun_train_as_those_of_the_launcher(mpirun, corpus, uninterrupted, tmp_path):
    done = _run("pretrain", *_flags(corpus, tmp_path / "output"), cwd=tmp_path, prefix=mpirun)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "mpirun (Open MPI) started rank 0 of 2" in done.stderr
    assert numbers(tmp_path / "output") == uninterrupted[0]


def test_a_mistake_under_mpirun_is_reported_once_with_exit_code_2(mpirun, corpus, tmp_path):
    flags = [*_flags(corpus, tmp_path / "output"), "--tensor_parallel_degree", "3"]
    done = _run("pretrain", *flags, cwd=tmp_path, prefix=mpirun)
    assert done.returncode == 2 and done.stderr.count("error: 1 problem in the configuration") == 1
