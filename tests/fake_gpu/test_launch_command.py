"""The command that `paddle-llm pretrain` starts on GPUs, beside the one on a CPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from paddle_llm.core.errors import UserError
from paddle_llm.training.launch.options import LaunchOptions, launch_command, launch_environment


def _after(name: str, command: list[str]) -> str:
    return command[command.index(name) + 1]


def test_one_rank_per_card(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    options = LaunchOptions(nproc_per_node=2, log_dir="logs")
    command = launch_command(options, "pretrain", "gpu", ["mine.json", "--seed", "7"])
    assert _after("--gpus", command) == "4,5" and "--nproc_per_node" not in command
    assert command[-3:] == ["mine.json", "--seed", "7"] and Path(command[-4]).name == "pretrain.py"
    assert _after("--log_dir", command) == "logs"
    # Paddle's launcher looks the cards up in the variable, so it stays as it is.
    assert launch_environment(options, "gpu")["CUDA_VISIBLE_DEVICES"] == "4,5,6,7"


def test_the_given_cards_are_used_on_a_gpu_only(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    options = LaunchOptions(gpus="1,3")
    assert _after("--gpus", launch_command(options, "pretrain", "gpu", [])) == "1,3"
    with pytest.raises(UserError, match="--gpus 1,3: the job would run on the CPU"):
        launch_command(options, "pretrain", "cpu", [])


def test_ranks_on_a_cpu_have_an_entry_each_in_the_list_of_cards(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    options = LaunchOptions(nproc_per_node=3)
    command = launch_command(options, "finetune", "cpu", [])
    assert _after("--nproc_per_node", command) == "3" and "--gpus" not in command
    assert launch_environment(options, "cpu")["CUDA_VISIBLE_DEVICES"] == "0,1,2"


@pytest.mark.parametrize("device", ["gpu", "cpu"])
def test_several_machines(device, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PADDLE_MASTER", "elsewhere:1")
    options = LaunchOptions(nproc_per_node=8, nnodes=4, master="localhost:3777", node_rank=2)
    command = launch_command(options, "pretrain", device, [])
    # The launcher compares addresses as text, so names are resolved.
    assert _after("--master", command) == "127.0.0.1:3777" and _after("--host", command) == "127.0.0.1"
    assert _after("--nnodes", command) == "4" and _after("--rank", command) == "2"
    assert _after("--log_dir", command) == "log/node2"
    assert "PADDLE_MASTER" not in launch_environment(options, device)  # it would take precedence
