"""The scripts of launch/: what they start for a GPU, and what they train on a CPU."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.helpers.models.tiny import write_llama
from tests.helpers.processes import wait_until
from tests.helpers.skips import needs

ROOT = Path(__file__).parents[1]
LAUNCH = ROOT / "launch"
SCRIPTS = [
    "one_card.sh",
    "eight_cards_stage2.sh",
    "run_trainer_tp4pp2.sh",
    "many_machines.sh",
    "slurm.sbatch",
    "finetune.sh",
]
STEPS = 6


def environment(**changes: str) -> dict[str, str]:
    """Return the environment of this process without the variables of a launcher or scheduler."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PADDLE_", "SLURM_", "FLAGS_", "CUDA_"))}
    return kept | {"PYTHON": sys.executable, "PYTHONPATH": str(ROOT)} | changes


def run(script: str, *arguments: str, cwd: Path, timeout: float = 280, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(LAUNCH / script), *arguments],
        cwd=cwd,
        env=environment(**env),
        capture_output=True,
        text=True,
        timeout=timeout,
    )


# --- The command that a script runs, without a training


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_names_the_command_and_every_setting(script: str, tmp_path: Path) -> None:
    shown = run(script, "-h", cwd=tmp_path)
    assert shown.returncode == 0
    assert f"launch/{script}" in shown.stdout and "CONFIG.json" in shown.stdout
    if script != "slurm.sbatch":
        assert all(name in shown.stdout for name in ("GPUS", "DEVICE=cpu", "MAX_RESTART", "LOG_DIR", "PYTHON"))


@pytest.mark.parametrize("script", [name for name in SCRIPTS if name != "run_trainer_tp4pp2.sh"])
def test_a_script_without_arguments_is_refused(script: str, tmp_path: Path) -> None:
    ended = run(script, cwd=tmp_path)
    assert ended.returncode == 2
    assert ended.stdout == "" and "CONFIG.json" in ended.stderr


def _python(folder: Path, launcher: str) -> Path:
    """Return an interpreter that runs files like Python, and shell code instead of `-m paddle.distributed.launch`."""
    path = folder / "python"
    path.write_text(f'#!/bin/bash\ncase $1 in *.py) exec {sys.executable} "$@" ;; esac\n{launcher}\n')
    path.chmod(0o755)
    return path


@pytest.fixture
def recorder(tmp_path: Path) -> Path:
    """Return an interpreter that runs files like Python, and prints the arguments of `-m paddle.distributed.launch`."""
    path = tmp_path / "recorder"
    path.write_text(f'#!/bin/bash\ncase $1 in *.py) exec {sys.executable} "$@" ;; esac\nprintf "%s\\n" "$@"\n')
    path.chmod(0o755)
    return path


def words(script: str, *arguments: str, recorder: Path, **env: str) -> list[str]:
    ended = run(script, *arguments, cwd=recorder.parent, **{"PYTHON": str(recorder), "DEVICE": "gpu"} | env)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.splitlines()


def after(name: str, line: list[str]) -> str:
    return line[line.index(name) + 1]


def test_the_cards_of_one_machine_are_passed_to_the_launcher(recorder: Path) -> None:
    line = words("eight_cards_stage2.sh", "x.json", "--seed", "7", recorder=recorder)
    assert line[:3] == ["-u", "-m", "paddle.distributed.launch"]
    assert after("--gpus", line) == "0,1,2,3,4,5,6,7"
    script = line.index(str(ROOT / "run_pretrain.py"))
    assert line[script + 1 :] == ["x.json", "--sharding", "stage2", "--seed", "7"]
    assert "--device" not in line
    assert after("--gpus", words("one_card.sh", "x.json", recorder=recorder)) == "0"
    assert after("--gpus", words("one_card.sh", "x.json", recorder=recorder, GPUS="5")) == "5"


def test_cards_are_taken_from_those_that_are_visible(recorder: Path) -> None:
    visible = {"CUDA_VISIBLE_DEVICES": "2,3,GPU-5d"}
    assert after("--gpus", words("finetune.sh", "x.json", recorder=recorder, **visible)) == "2"
    assert (
        after("--gpus", words("eight_cards_stage2.sh", "x.json", recorder=recorder, RANKS="3", **visible))
        == "2,3,GPU-5d"
    )
    assert after("--gpus", words("finetune.sh", "x.json", recorder=recorder, GPUS="3,2", **visible)) == "3,2"
    assert after("--gpus", words("finetune.sh", "x.json", recorder=recorder, CUDA_VISIBLE_DEVICES="all")) == "0"


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"CUDA_VISIBLE_DEVICES": "2,3"}, "CUDA_VISIBLE_DEVICES=2,3 has 2 cards and 8 are needed."),
        ({"CUDA_VISIBLE_DEVICES": ""}, "CUDA_VISIBLE_DEVICES= has 0 cards and 8 are needed."),
        ({"CUDA_VISIBLE_DEVICES": "12,3", "GPUS": "2"}, "GPUS=2: CUDA_VISIBLE_DEVICES=12,3 does not contain card 2."),
    ],
)
def test_cards_that_are_not_visible_are_refused(env: dict[str, str], message: str, tmp_path: Path) -> None:
    ended = run("eight_cards_stage2.sh", "x.json", cwd=tmp_path, **env)
    assert ended.returncode == 2 and ended.stderr.startswith(f"error: {message}")
    assert len(ended.stderr.splitlines()) == 1


def test_on_a_cpu_the_launcher_has_a_card_for_each_rank(tmp_path: Path) -> None:
    """The launcher (3.3.1) looks ranks up in CUDA_VISIBLE_DEVICES for every device."""
    python = _python(tmp_path, 'echo "$CUDA_VISIBLE_DEVICES"')
    env = {"PYTHON": str(python), "DEVICE": "cpu", "RANKS": "3", "CUDA_VISIBLE_DEVICES": "7"}
    assert run("eight_cards_stage2.sh", "x.json", cwd=tmp_path, **env).stdout == "0,1,2\n"


def test_a_restart_waits_for_the_lock_of_the_output_folder(tmp_path: Path) -> None:
    python = _python(tmp_path, 'echo "${PADDLE_LLM_LOCK_WAIT-none}"\nexit 75')
    ended = run("one_card.sh", "x.json", cwd=tmp_path, PYTHON=str(python), MAX_RESTART="2")
    assert ended.returncode == 75 and ended.stdout.split() == ["none", "120", "120"]


@pytest.mark.parametrize("code", [0, 2, 3])
def test_what_is_not_restarted(code: int, tmp_path: Path) -> None:
    """A success, a mistake of the user, and a non-finite step, which would repeat."""
    python = _python(tmp_path, f"echo started\nexit {code}")
    ended = run("one_card.sh", "x.json", cwd=tmp_path, PYTHON=str(python), MAX_RESTART="2")
    assert (ended.returncode, ended.stdout) == (code, "started\n")


def test_the_exit_code_of_a_killed_job(tmp_path: Path) -> None:
    python = _python(tmp_path, "kill -KILL $$")
    assert run("one_card.sh", "x.json", cwd=tmp_path, PYTHON=str(python), MAX_RESTART="0").returncode == 137


@pytest.mark.parametrize(
    "number, ends_with, code",
    [
        (signal.SIGTERM, 75, 75),  # the ranks have saved their state
        (signal.SIGUSR1, 75, 75),
        (signal.SIGTERM, 15, 143),  # Paddle's launcher has ended ranks that do not save
        (signal.SIGINT, 15, 130),
        (signal.SIGHUP, 15, 129),
    ],
)
def test_a_signal_reaches_the_launcher_which_is_not_restarted(
    number: int, ends_with: int, code: int, tmp_path: Path
) -> None:
    """The launcher gets SIGTERM as long as it has no ranks."""
    trap = f"trap 'touch ended; exit {ends_with}' TERM\ntouch started\nwhile :; do sleep 0.1; done"
    python = _python(tmp_path, trap)
    script = ["bash", str(LAUNCH / "one_card.sh"), "x.json"]
    job = subprocess.Popen(
        script, cwd=tmp_path, env=environment(PYTHON=str(python), MAX_RESTART="3"), stderr=subprocess.PIPE, text=True
    )
    wait_until((tmp_path / "started").exists, 60, "the launcher runs")
    job.send_signal(number)
    _, err = job.communicate(timeout=200)
    assert job.returncode == code and (tmp_path / "ended").exists() and "Restart" not in err


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"MAX_RESTART": "many"}, "MAX_RESTART is 'many'. Use a whole number of at least 0."),
        ({"RANKS": "0"}, "RANKS is '0'. Use a whole number of at least 1."),
        ({"NODES": "two"}, "NODES is 'two'. Use a whole number of at least 1."),
        ({"NODE_RANK": "-1"}, "NODE_RANK is '-1'. Use a whole number of at least 0."),
        ({"PYTHON": "no_python"}, "PYTHON is 'no_python', which is not a program."),
        ({"ENTRY": "x.py"}, "ENTRY is 'x.py', which is not a file in "),
        ({"GPUS": "0,1,0"}, "GPUS=0,1,0 lists card 0 twice."),
    ],
)
def test_a_setting_with_a_wrong_value_is_refused(env: dict[str, str], message: str, recorder: Path) -> None:
    settings = {"PYTHON": str(recorder), "MASTER": "127.0.0.1:3777", "NODES": "2"} | env
    ended = run("many_machines.sh", "x.json", cwd=recorder.parent, **settings)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith(f"error: {message}") and len(ended.stderr.splitlines()) == 1, ended.stderr


def test_a_job_that_was_asked_to_stop_is_not_restarted(tmp_path: Path) -> None:
    """A rank that got a signal leaves a mark; this process did not get one."""
    marking = 'mkdir -p "$(dirname "$PADDLE_LLM_STOP_MARK")"\ntouch "$PADDLE_LLM_STOP_MARK"'
    python = _python(tmp_path, f"echo start\n{marking}\nexit 75")
    for _ in range(2):  # a mark of an earlier job has no effect
        ended = run("one_card.sh", "x.json", cwd=tmp_path, PYTHON=str(python), MAX_RESTART="2")
        assert ended.returncode == 75 and ended.stdout.split() == ["start"], ended.stderr


# srun with one task, to which it passes USR1 on; the launcher of that task, which saves when it is asked to stop; scontrol.
SRUN_WITH_SIGNALS = """#!/bin/bash
while [[ $1 == -* ]]; do shift; done
SLURM_NODEID=0 "$@" & task=$!
trap 'again=1; kill -USR1 $task' USR1
again=1
while [[ $again ]]; do again=; wait $task; code=$?; done
exit $code
"""
SAVING_LAUNCHER = """#!/bin/bash
case $1 in *.py) exec {python} "$@" ;; esac
trap 'exit {code}' TERM
touch {started}
while :; do sleep 0.05; done
"""
SCONTROL_REQUEUE = """#!/bin/bash
if [[ $1 == requeue ]]; then echo "$2" > {requeued}; else echo localhost; fi
"""


@pytest.mark.parametrize(
    ("number", "code", "is_requeued"),
    [(signal.SIGUSR1, 75, True), (signal.SIGTERM, 75, False), (signal.SIGUSR1, 3, False)],
    ids=["time limit", "cancelled", "failed while saving"],
)
def test_slurm_requeues_a_job_that_has_saved_before_its_time_limit(
    number: signal.Signals, code: int, is_requeued: bool, tmp_path: Path
) -> None:
    started, requeued = tmp_path / "started", tmp_path / "requeued"
    programs = {
        "srun": SRUN_WITH_SIGNALS,
        "scontrol": SCONTROL_REQUEUE.format(requeued=requeued),
        "launcher": SAVING_LAUNCHER.format(python=sys.executable, started=started, code=code),
    }
    for name, text in programs.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    slurm = {"SLURM_SUBMIT_DIR": str(ROOT), "SLURM_JOB_NODELIST": "localhost", "SLURM_JOB_NUM_NODES": "1"}
    paths = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "LOG_DIR": str(tmp_path / "log")}
    python = {"PYTHON": str(tmp_path / "launcher"), "DEVICE": "cpu", "RANKS": "1", "MAX_RESTART": "3"}
    env = environment(**slurm, **paths, **python, SLURM_JOB_ID="4711")
    with (tmp_path / "out").open("w") as out:
        job = subprocess.Popen(["bash", str(LAUNCH / "slurm.sbatch"), "x.json"], env=env, stdout=out, stderr=out)
        wait_until(started.exists, 60, "the launcher has started")
        job.send_signal(number)
        assert job.wait(60) == code, (tmp_path / "out").read_text()
    assert requeued.exists() == is_requeued
    if is_requeued:
        assert requeued.read_text() == "4711\n"


def test_slurm_is_asked_for_a_signal_before_the_time_limit() -> None:
    assert "#SBATCH --signal=B:USR1@120\n" in (LAUNCH / "slurm.sbatch").read_text()


def test_a_config_file_is_optional(recorder: Path) -> None:
    line = words("eight_cards_stage2.sh", "--model_name_or_path", "m", recorder=recorder)
    script = line.index(str(ROOT / "run_pretrain.py"))
    assert line[script + 1 :] == ["--sharding", "stage2", "--model_name_or_path", "m"]


def test_fine_tuning_starts_its_own_script(recorder: Path) -> None:
    line = words("finetune.sh", "x.json", "--lora", "1", recorder=recorder, GPUS="2,3")
    assert after("--gpus", line) == "2,3"
    assert line[line.index(str(ROOT / "finetune_generation.py")) + 1 :] == ["x.json", "--lora", "1"]
    line = words("one_card.sh", "x.json", recorder=recorder, ENTRY="finetune_generation.py")
    assert str(ROOT / "finetune_generation.py") in line


def test_the_tutorials_script_runs_without_arguments(recorder: Path) -> None:
    line = words("run_trainer_tp4pp2.sh", recorder=recorder)
    assert str(ROOT / "configs/pretrain/llama_7b_tp4_pp2.json") in line
    assert after("--tensor_parallel_degree", line) == "4" and after("--pipeline_parallel_degree", line) == "2"


def test_many_machines_are_passed_to_the_launcher(recorder: Path) -> None:
    line = words("many_machines.sh", "x.json", recorder=recorder, MASTER="localhost:3777", NODES="4", NODE_RANK="2")
    # The launcher compares addresses as text: with a name, no machine would open the rendezvous.
    assert after("--master", line) == "127.0.0.1:3777" and after("--host", line) == "127.0.0.1"
    assert after("--nnodes", line) == "4" and after("--rank", line) == "2"
    assert after("--log_dir", line) == "log/node2"


def test_many_machines_by_the_operators_variables_and_by_etcd(recorder: Path) -> None:
    line = words("many_machines.sh", "x.json", recorder=recorder, PADDLE_MASTER="127.0.0.1:37777", PADDLE_NNODES="2")
    assert after("--master", line) == "127.0.0.1:37777" and after("--nnodes", line) == "2"
    assert "--rank" not in line
    line = words("many_machines.sh", "x.json", recorder=recorder, MASTER="etcd://h:2379", NODES="2", MAX_RESTART="5")
    assert after("--master", line) == "etcd://h:2379"
    assert after("--elastic_level", line) == "1" and after("--max_restart", line) == "5"


@pytest.mark.parametrize(
    ("env", "message"),
    [({}, "MASTER=HOST:PORT and NODES=N"), ({"MASTER": "nowhere", "NODES": "2"}, "HOST:PORT of the first machine")],
)
def test_many_machines_without_an_address_are_refused(env: dict[str, str], message: str, tmp_path: Path) -> None:
    ended = run("many_machines.sh", "x.json", cwd=tmp_path, **env)
    assert ended.returncode == 2 and message in ended.stderr and "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"MASTER": "etcd://h:2379"}, "MIN_NODES=1 needs MASTER=HOST:PORT and a MAX_RESTART of at least 1"),
        ({"MAX_RESTART": "0"}, "MIN_NODES=1 needs MASTER=HOST:PORT and a MAX_RESTART of at least 1"),
        ({"MIN_NODES": "none"}, "MIN_NODES is 'none'"),
        ({}, "output_dir is missing"),  # the mistakes of the config, before any machine waits for another one
        ({"MIN_NODES": "2"}, "is not a smaller number of machines"),
    ],
)
def test_a_minimum_of_machines_that_cannot_work_is_refused(env: dict[str, str], message: str, tmp_path: Path) -> None:
    settings = {"MASTER": "127.0.0.1:3777", "NODES": "2", "MIN_NODES": "1", "DEVICE": "cpu", "RANKS": "1"} | env
    model = str(write_llama(tmp_path / "m"))
    flags = ["--do_train", "--model_name_or_path", model, "--input_dir", model, "--max_seq_length", "64"]
    if message != "output_dir is missing":
        flags += ["--output_dir", "o"]
    ended = run("many_machines.sh", *flags, cwd=tmp_path, **settings)
    assert ended.returncode == 2 and message in ended.stderr and "Traceback" not in ended.stderr, ended.stderr


def test_another_device_is_refused(tmp_path: Path) -> None:
    ended = run("one_card.sh", "x.json", cwd=tmp_path, DEVICE="tpu")
    assert ended.returncode == 2 and "DEVICE is 'tpu'" in ended.stderr


def test_the_manifest_of_kubernetes_fits_its_configuration() -> None:
    manifest = yaml.safe_load((LAUNCH / "paddlejob.yaml").read_text())
    assert (manifest["apiVersion"], manifest["kind"]) == ("kubeflow.org/v1", "PaddleJob")
    worker = manifest["spec"]["paddleReplicaSpecs"]["Worker"]
    pod = worker["template"]["spec"]
    (container,) = pod["containers"]
    assert container["name"] == "paddle" and container["ports"][0]["name"] == "master"  # the operator looks for both
    assert (ROOT / container["command"][1]).is_file()
    raw = json.loads((ROOT / container["args"][0]).read_text())
    ranks = 1
    for kind in ("data", "sharding", "tensor", "pipeline"):
        ranks *= raw[f"{kind}_parallel_degree"]
    gpus = container["resources"]["limits"]["nvidia.com/gpu"]
    settings = {entry["name"]: entry["value"] for entry in container["env"]}
    assert worker["replicas"] * gpus == ranks and len(settings["GPUS"].split(",")) == gpus
    assert all(isinstance(value, str) for value in settings.values())  # Kubernetes accepts only text
    assert container["lifecycle"]["preStop"]["exec"]["command"] == ["bash", "-c", "kill -USR1 1"]
    assert pod["terminationGracePeriodSeconds"] >= 120
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    from paddle_llm.config.run_config import FIELD_NAMES

    assert {word[2:] for word in container["args"] if word.startswith("--")} <= set(FIELD_NAMES)


def test_shellcheck() -> None:
    needs("shellcheck", shutil.which("shellcheck") is not None, "Debian: apt-get install shellcheck")
    files = [str(path) for path in sorted([*LAUNCH.glob("*.sh"), LAUNCH / "slurm.sbatch"])]
    found = subprocess.run(["shellcheck", "-x", "-P", str(LAUNCH), *files], capture_output=True, text=True, timeout=120)
    assert found.returncode == 0, found.stdout


# --- Trainings on CPU ranks


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a tiny model, a tokenizer, a corpus and a config.json that names them."""
    from pydoc_data.topics import topics

    folder = tmp_path_factory.mktemp("job")
    text = folder / "text.jsonl"
    text.write_text("".join(json.dumps({"text": topics[name]}) + "\n" for name in sorted(topics)[:30]))
    for arguments in (
        ["tokenizer", "train", "--input", str(text), "--output_dir", str(folder / "tokenizer"), "--vocab_size", "400"],
        ["data", "build", "--input", str(text), "--tokenizer", str(folder / "tokenizer"), "--workers", "1"]
        + ["--output_prefix", str(folder / "data" / "topics")],
    ):
        subprocess.run([sys.executable, "-m", "paddle_llm.cli", *arguments], check=True, cwd=ROOT, timeout=120)
    write_llama(folder / "model", vocab_size=400, hidden_size=32, intermediate_size=64)
    settings = {
        "model_name_or_path": str(folder / "model"),
        "tokenizer_name_or_path": str(folder / "tokenizer"),
        "input_dir": str(folder / "data"),
        "split": "949,50,1",
        "max_seq_length": 32,
        "do_train": True,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 2,
        "learning_rate": 0.01,
        "max_steps": STEPS,
        "logging_steps": 1,
        "save_steps": 2,
        "dataloader_num_workers": 0,
    }
    (folder / "config.json").write_text(json.dumps(settings))
    return folder


def train(script: str, job: Path, output: Path, *flags: str, **env: str) -> subprocess.CompletedProcess[str]:
    env = {"DEVICE": "cpu", "LOG_DIR": str(output.parent / "log"), "MAX_RESTART": "0"} | env
    return run(script, str(job / "config.json"), "--output_dir", str(output), *flags, cwd=ROOT, **env)


def assert_trained(ended: subprocess.CompletedProcess[str], output: Path) -> dict:
    """Assert that metrics.jsonl has every step once, and return the resolved configuration."""
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, STEPS + 1))
    assert (output / f"checkpoint-{STEPS}").is_dir()
    return json.loads((output / "config.resolved.json").read_text())


# sitecustomize.py: a process kills itself when it begins to write the checkpoint after KILL_AFTER, unless KILL_MARK exists.
KILL_ONCE = """
import os, signal, sys

checkpoint, mark = os.environ["KILL_AFTER"], os.environ["KILL_MARK"]

def kill_once(event, arguments):
    if event == "os.mkdir" and os.path.isdir(checkpoint) and not os.path.exists(mark):
        os.close(os.open(mark, os.O_CREAT))
        os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(kill_once)
"""


@pytest.mark.slow  # tests/distributed/test_training_commands.py restarts a killed job with the same supervisor
@pytest.mark.timeout(400)
def test_one_card_on_a_cpu_resumes_after_a_failure(job: Path, tmp_path: Path) -> None:
    """The trainer is killed after its first checkpoint; the script starts it again and no step is lost or repeated."""
    output, killed = tmp_path / "output", tmp_path / "killed"
    (tmp_path / "sitecustomize.py").write_text(KILL_ONCE)
    ended = train(
        "one_card.sh",
        job,
        output,
        "--overwrite_output_dir",
        "1",
        MAX_RESTART="1",
        PYTHONPATH=f"{tmp_path}:{ROOT}",
        KILL_AFTER=str(output / "checkpoint-2"),
        KILL_MARK=str(killed),
    )
    assert killed.exists(), ended.stdout + ended.stderr
    assert re.search(r"^The job ended with exit code \d+\. Restart 1 of 1\.$", ended.stderr, re.M)
    assert_trained(ended, output)


def test_a_job_with_a_mistake_is_not_restarted(job: Path, tmp_path: Path) -> None:
    ended = train("one_card.sh", job, tmp_path / "output", "--learning_rat", "1", MAX_RESTART="3")
    assert ended.returncode == 2
    assert "learning_rate" in ended.stdout + ended.stderr  # did you mean
    assert "Restart 1" not in ended.stderr


def test_eight_cards_stage2_trains_on_two_cpu_ranks(job: Path, tmp_path: Path) -> None:
    output = tmp_path / "output"
    resolved = assert_trained(train("eight_cards_stage2.sh", job, output, RANKS="2"), output)
    assert "stage2" in json.dumps(resolved)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_run_trainer_tp4pp2_trains_on_eight_cpu_ranks(job: Path, tmp_path: Path) -> None:
    output = tmp_path / "output"
    assert_trained(train("run_trainer_tp4pp2.sh", job, output), output)


# The two commands of Slurm, for two machines that are both this one.
SCONTROL = """#!/bin/bash
[[ $* == "show hostnames here[1-2]" ]] || exit 1
printf 'localhost\\nother\\n'
"""
SRUN = """#!/bin/bash
while [[ $1 == -* ]]; do shift; done
[[ $SRUN_CPUS_PER_TASK == 3 && $PADDLE_LLM_LOCK_WAIT == 330 ]] || exit 1
SLURM_NODEID=0 "$@" & first=$!
SLURM_NODEID=1 "$@" & second=$!
wait $first && wait $second
"""


def test_slurm_starts_many_machines(job: Path, tmp_path: Path) -> None:
    for name, text in (("scontrol", SCONTROL), ("srun", SRUN)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    output = tmp_path / "output"
    ended = train(
        "slurm.sbatch",
        job,
        output,
        PATH=f"{tmp_path}:{os.environ['PATH']}",
        RANKS="1",
        SLURM_SUBMIT_DIR=str(ROOT),
        SLURM_JOB_NODELIST="here[1-2]",
        SLURM_JOB_NUM_NODES="2",
        SLURM_JOB_ID=str(os.getpid()),
        SLURM_CPUS_PER_TASK="3",
        SLURM_RESTART_COUNT="1",
    )
    assert_trained(ended, output)
    assert (tmp_path / "log" / "node0").is_dir() and (tmp_path / "log" / "node1").is_dir()


def test_slurm_finds_the_folder_of_its_log() -> None:
    """Slurm does not create the folder of --output, and a job whose log cannot be opened ends without a message."""
    (line,) = [line for line in (LAUNCH / "slurm.sbatch").read_text().splitlines() if "--output=" in line]
    assert "/" not in line.partition("--output=")[2]


# --- Flags of a restart


def restart_flags(started: float, *arguments: str) -> list[str]:
    from paddle_llm.training.launch import restart

    return restart.restart_flags(started, list(arguments))


def test_a_restart_continues_from_the_newest_checkpoint_of_the_run(tmp_path: Path) -> None:
    from tests.helpers.checkpoints import save_checkpoint

    config, output = tmp_path / "config.json", tmp_path / "output"
    config.write_text(json.dumps({"output_dir": str(output)}))
    now = time.time()
    assert restart_flags(now - 60, str(config)) == []  # the run did not create its folder
    output.mkdir()
    (output / "config.resolved.json").write_text("{}")
    assert restart_flags(now - 60, str(config)) == ["--overwrite_output_dir", "1"]
    assert restart_flags(now + 60, str(config)) == []  # the folder of an older run must not be overwritten
    for step in (2, 10):
        save_checkpoint(output, step)
    assert restart_flags(now - 60, str(config)) == ["--resume_from_checkpoint", str(output / "checkpoint-10")]
    assert restart_flags(now + 60, str(config)) == []  # the checkpoint that the command chooses is kept
    assert (
        restart_flags(now - 60, str(config), "--output_dir", str(tmp_path / "other")) == []
    )  # a flag takes precedence over the file
