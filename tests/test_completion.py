"""Completion in the shell: commands, flags of a config, names of recipes, and its installation."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

MODULE = [sys.executable, "-m", "paddle_llm.cli"]


def _completions(line: str) -> list[str]:
    """Return what bash offers for the last word of a command line."""
    words = line.split(" ")
    settings = {"_PADDLE_LLM_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    done = subprocess.run(MODULE, env=os.environ | settings, capture_output=True, text=True, check=True, timeout=60)
    return [entry.split(",", 1)[1] for entry in done.stdout.splitlines()]


@pytest.mark.parametrize(
    "line, offered",
    [
        ("paddle-llm p", ["pretrain"]),
        (
            "paddle-llm pretrain my.json --tensor",
            ["--tensor_parallel_degree", "--tensor_parallel_config", "--tensor_parallel_output"],
        ),
        ("paddle-llm pretrain my.json --nnod", ["--nnodes"]),
        ("paddle-llm finetune my.json --lora_al", ["--lora_alpha"]),
        ("paddle-llm recipes show finetune/bloom_7b1_l", ["finetune/bloom_7b1_lora"]),
        ("paddle-llm recipes copy bloom_7b1_l", ["bloom_7b1_lora"]),
        ("paddle-llm recipes copy quick", ["quickstart"]),
    ],
)
def test_what_is_completed(line, offered):
    assert set(_completions(line)) <= set(offered) and _completions(line)


@pytest.mark.parametrize(
    "shell, file",
    [
        ("bash", ".local/share/bash-completion/completions/paddle-llm"),
        ("zsh", ".zfunc/_paddle-llm"),
        ("fish", ".config/fish/completions/paddle-llm.fish"),
    ],
)
def test_installation(shell, file, tmp_path):
    kept = {name: value for name, value in os.environ.items() if not name.startswith("XDG_")}
    environment = kept | {"HOME": str(tmp_path), "SHELL": f"/usr/bin/{shell}"}
    done = subprocess.run(
        [*MODULE, "--install-completion"], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    script = tmp_path / file
    assert "_PADDLE_LLM_COMPLETE" in script.read_text() and str(script) in done.stderr
    if shutil.which(shell):
        subprocess.run([shell, "-n", str(script)], check=True)


def test_an_unknown_shell_is_refused(tmp_path):
    environment = os.environ | {"HOME": str(tmp_path), "SHELL": "/bin/tcsh"}
    done = subprocess.run(
        [*MODULE, "--install-completion"], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2 and "tcsh" in done.stderr and list(tmp_path.iterdir()) == []


def test_bash_completes_in_a_real_shell(tmp_path):
    """The installed function is called as bash calls it; `paddle-llm` is on PATH."""
    (tmp_path / "paddle-llm").write_text(f'#!/bin/sh\nexec {sys.executable} -m paddle_llm.cli "$@"\n')
    (tmp_path / "paddle-llm").chmod(0o755)
    environment = os.environ | {"HOME": str(tmp_path), "SHELL": "/bin/bash", "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    environment.pop("XDG_DATA_HOME", None)
    script = tmp_path / ".local/share/bash-completion/completions/paddle-llm"
    code = (
        f'"{tmp_path}/paddle-llm" --install-completion && source {script} && COMP_WORDS=(paddle-llm reh) && COMP_CWORD=1 && '
        '$(complete -p paddle-llm | sed -n "s/.*-F \\([^ ]*\\).*/\\1/p") paddle-llm reh && echo "${COMPREPLY[@]}"'
    )
    root = Path(__file__).parents[1]
    done = subprocess.run(
        ["bash", "-c", code], env=environment, cwd=root, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.strip() == "rehearse", done.stderr
