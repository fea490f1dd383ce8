"""run_pretrain.py as users start it, with the real launcher: old command lines, mistakes, a killed rank, resume."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from paddle_llm.checkpoint.output_lock import RUN_LOCK, hold_output_folder, release_output_folder
from tests.helpers.corpus import make_corpus
from tests.helpers.forked import run_forked
from tests.helpers.pretrain_jobs import numbers, rows
from tests.helpers.processes import descendants, running, wait_until

ROOT = Path(__file__).parents[2]
# The pretraining command of a public 2023 tutorial, with `--nproc_per_node` for `--gpus`, a device and shorter lengths.
TUTORIAL = """
--model_type "llama" --model_name_or_path "{corpus}/llama" --tokenizer_name_or_path "{corpus}/tokenizer"
--input_dir "{corpus}/data" --output_dir "{output}" --split 949,50,1 --max_seq_length 64
--per_device_train_batch_size 1 --per_device_eval_batch_size 1 --use_flash_attention 1 --use_fused_rms_norm 0
--fp16 --fp16_opt_level "O2" --scale_loss 1024 --learning_rate 0.00001 --min_learning_rate 0.000005 --lr_scheduler_type "cosine"
--max_steps 8 --save_steps 4 --weight_decay 0.01 --warmup_ratio 0.01 --max_grad_norm 1.0 --logging_steps 2
--dataloader_num_workers 1 --sharding "stage2" --eval_steps 4 --report_to "visualdl" --disable_tqdm true
--continue_training 0 --recompute 1 --do_train --do_eval --device "cpu"
"""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("corpus"))


def _flags(corpus: Path, output: Path, text: str = TUTORIAL) -> list[str]:
    return shlex.split(text.format(corpus=corpus, output=output))


def _launch(ranks: int, flags: list[str], log_dir: Path) -> subprocess.Popen:
    command = [
        sys.executable,
        "-u",
        "-m",
        "paddle.distributed.launch",
        "--nproc_per_node",
        str(ranks),
        "--log_dir",
        str(log_dir),
    ]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*command, "run_pretrain.py", *flags], cwd=ROOT, **pipes)


@pytest.fixture(scope="module")
def whole(corpus, tmp_path_factory):
    """Return the folder of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    job = _launch(2, _flags(corpus, folder / "output"), folder / "log")
    out, err = job.communicate(timeout=240)
    assert job.returncode == 0, err + out
    return folder


def test_the_command_of_the_tutorial_runs(whole):
    output = whole / "output"
    found = rows(output)
    assert [row["step"] for row in found if "loss" in row] == [2, 4, 6, 8]
    assert [row["step"] for row in found if "eval_loss" in row] == [4, 8]
    log = (whole / "log" / "workerlog.0").read_text()
    assert "fp16" in log and "float32" in log or "fp32" in log  # reported
    assert "flash" in log
    assert (output / "checkpoint-8" / "manifest.json").exists()
    assert (output / "model" / "model.safetensors").exists()
    assert any((output / "visualdl").iterdir())


@pytest.mark.parametrize("victim", ["rank 1", pytest.param("launcher", marks=pytest.mark.slow)])
def test_a_killed_job_resumes_exactly(victim, corpus, whole, tmp_path):
    """SIGKILL after the first checkpoint: all processes end, and after a restart the rows are those of one run."""
    output, log = tmp_path / "killed", tmp_path / "log2" / "workerlog.0"
    flags = _flags(corpus, output)
    job = _launch(2, [*flags, "--max_steps", "4000", "--decay_steps", "8", "--warmup_ratio", "0"], tmp_path / "log2")
    _wait_for(lambda: (output / "checkpoint-4" / "manifest.json").exists(), job)
    started = descendants(job.pid)
    assert len(started) >= 4  # two ranks, and a data loading worker of each
    if victim == "launcher":
        os.kill(job.pid, signal.SIGKILL)
    else:
        _kill_rank_1(job, log)
    job.communicate(timeout=120)
    assert job.returncode != 0
    wait_until(lambda: not running(started), 60, "all processes of the job have ended")
    assert "Traceback" not in log.read_text()
    # How many steps the job made before it was killed depends on the machine.
    for checkpoint in output.glob("checkpoint-*"):
        if checkpoint.name != "checkpoint-4":
            shutil.rmtree(checkpoint)
    locked = (output / RUN_LOCK).exists()  # a rank that lost its peer first removed it on its way out
    again = _launch(2, flags, tmp_path / "log3")
    out, err = again.communicate(timeout=240)
    assert again.returncode == 0, err + out
    printed = (tmp_path / "log3" / "workerlog.0").read_text()
    assert (f"{RUN_LOCK} is stale" in printed) == locked
    assert "resuming from" in printed
    assert numbers(output) == numbers(whole / "output")


def _kill_rank_1(job: subprocess.Popen, log_of_rank_0: Path) -> None:
    """Kill rank 1, and let the launcher notice it only when rank 0 has reported the loss: it would end rank 0."""
    victim = _rank_process(job.pid, 1)
    job.send_signal(signal.SIGSTOP)
    try:
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda: "rank 0: rank 1 is gone" in log_of_rank_0.read_text(), 60, "rank 0 reports the loss")
    finally:
        job.send_signal(signal.SIGCONT)


def _wait_for(condition, job: subprocess.Popen, seconds: float = 120) -> None:
    wait_until(lambda: condition() or job.poll() is not None, seconds, "the job has reached that point")
    assert condition(), job.communicate()


def _rank_process(launcher: int, rank: int) -> int:
    """Return the process id of a rank among the launcher's children."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    for child in children:
        environment = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        if f"PADDLE_TRAINER_ID={rank}".encode() in environment:
            return int(child)
    raise AssertionError(f"no process of rank {rank} among {children}")


@pytest.mark.parametrize("slower", [0, 1])
def test_mistakes_are_reported_once_with_exit_code_2(slower, corpus, tmp_path, monkeypatch):
    """The launcher ends all ranks when one has exited; either rank may be the first."""
    flags = _flags(corpus, tmp_path / "output")
    (tmp_path / "sitecustomize.py").write_text(
        f"import os, time\nif os.environ.get('PADDLE_TRAINER_ID') == '{slower}': time.sleep(4)\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    flags += ["--learing_rate", "0.1", "--tensor_parallel_degree", "3", "--save_steps", "zero"]
    job = _launch(2, flags, tmp_path / "log")
    out, err = job.communicate(timeout=120)
    assert job.returncode == 2, (job.returncode, err)
    first, second = ((tmp_path / "log" / f"workerlog.{rank}").read_text() for rank in (0, 1))
    assert "Did you mean --learning_rate" in first and "tensor_parallel_degree" in first and "save_steps" in first
    assert "Traceback" not in first + second and "error:" not in second
    assert not (tmp_path / "output").exists()


def _alone(flags: list[str]) -> subprocess.CompletedProcess[str]:
    return run_forked("run_pretrain.py", *flags, cwd=ROOT, timeout=120)


@pytest.mark.parametrize(
    "change, message",
    [
        (["--device", "gpu"], "device = gpu"),
        (["--input_dir", "{tmp}/nowhere"], "nowhere"),
        (["--tensor_parallel_degree", "2"], "--nproc_per_node 2"),
        (["--output_dir", "/proc/nothing"], "cannot be written"),
        (["--model_name_or_path", "{tmp}/nomodel"], "nomodel"),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_2(change, message, corpus, tmp_path):
    done = _alone([*_flags(corpus, tmp_path / "output"), *(word.format(tmp=tmp_path) for word in change)])
    assert done.returncode == 2, done.stderr
    assert message in done.stderr and "Traceback" not in done.stderr


def test_an_output_folder_in_use_is_rejected_and_unchanged(corpus, tmp_path):
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / "thesis.tex").write_text("mine")
    done = _alone(_flags(corpus, tmp_path / "output"))
    assert done.returncode == 2 and "--overwrite_output_dir" in done.stderr and "Traceback" not in done.stderr
    assert [p.name for p in (tmp_path / "output").iterdir()] == ["thesis.tex"]


def test_a_second_job_in_an_output_folder_is_refused(corpus, tmp_path):
    hold_output_folder(tmp_path / "output")
    try:
        done = _alone(_flags(corpus, tmp_path / "output"))
    finally:
        release_output_folder()
    holder = f"process {os.getpid()} on host {socket.gethostname()}"
    assert done.returncode == 2 and f"is in use by another job: {holder}." in done.stderr, done.stderr
    assert not (tmp_path / "output").exists()


def test_a_mistake_changes_no_file(corpus, tmp_path):
    """With a wrong --input_dir and --overwrite_output_dir, the files of an older run are kept and a new folder stays empty."""
    old = tmp_path / "old"
    (old / "checkpoint-3").mkdir(parents=True)
    (old / "metrics.jsonl").write_text("{}\n")
    mistake = ["--input_dir", str(tmp_path / "nowhere"), "--overwrite_output_dir"]
    assert _alone([*_flags(corpus, old), *mistake]).returncode == 2
    assert sorted(p.name for p in old.iterdir()) == ["checkpoint-3", "metrics.jsonl"]
    assert _alone([*_flags(corpus, tmp_path / "new"), *mistake]).returncode == 2
    assert not (tmp_path / "new").exists()


def test_help_imports_no_paddle_and_lists_every_group():
    command = [sys.executable, "-X", "importtime", "run_pretrain.py", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0 and "--learning_rate" in done.stdout and "Parallel layout" in done.stdout
    imported = {line.rpartition("|")[2].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert "paddle_llm" in imported and not imported & {"paddle", "paddlenlp"}
