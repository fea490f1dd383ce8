"""Completion in the shell: commands, flags of a config, names of recipes, and its installation."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import shutil
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from tests.helpers.skips import needs

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
        ("paddle-llm p", ["plan", "pretrain"]),
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


def _environment(folder: Path, shell: str) -> dict[str, str]:
    """Return an environment with FOLDER as home, `paddle-llm` on PATH, and the completion for a shell installed."""
    (folder / "paddle-llm").write_text(f'#!/bin/sh\nexec {sys.executable} -m paddle_llm.cli "$@"\n')
    (folder / "paddle-llm").chmod(0o755)
    (folder / "my_config.json").write_text("{}")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("XDG_")}
    root = Path(__file__).parents[1]
    environment = kept | {"HOME": str(folder), "SHELL": f"/bin/{shell}", "PATH": f"{folder}:{os.environ['PATH']}"}
    environment |= {"PYTHONPATH": f"{root}:{os.environ.get('PYTHONPATH', '')}", "TERM": "dumb"}
    subprocess.run(["paddle-llm", "--install-completion"], env=environment, check=True, capture_output=True)
    return environment


# What is typed -> what the shell makes of it.
TYPED = {
    "paddle-llm reh": "rehearse",
    "paddle-llm pretrain --nno": "--nnodes",
    "paddle-llm pretrain x.json --tensor_parallel_d": "--tensor_parallel_degree",
    "paddle-llm recipes copy bloom_7b1_l": "bloom_7b1_lora",
    "paddle-llm pretrain my_c": "my_config.json",
}


def test_fish_completes_in_a_real_shell(tmp_path):
    needs("other shells", shutil.which("fish") is not None, "Debian: apt-get install fish")
    code = "\n".join(f'complete -C "{line}"' for line in TYPED)
    done = subprocess.run(
        ["fish", "-c", code],
        env=_environment(tmp_path, "fish"),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert [line.split("\t")[0] for line in done.stdout.splitlines()] == list(TYPED.values()), done.stderr


def _typed(command: list[str], setup: str, folder: Path) -> list[str]:
    """Type each line of TYPED and a tab into an interactive shell; return the completions that appear on its screen.

    Args:
        command: Shell with its options.
        setup: Line that prepares the completion. Its last command sets the prompt to `ready`, written in two parts.
        folder: Home and current folder.
    """
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 300, 0, 0))  # lines are not wrapped
    shell = subprocess.Popen(
        command,
        stdin=slave,
        stdout=slave,
        stderr=slave,
        cwd=folder,
        env=_environment(folder, command[0]),
        start_new_session=True,
    )
    os.close(slave)
    try:
        _write_and_wait(master, f"{setup}\n", "ready ")
        found = []
        for line, wanted in TYPED.items():
            _write_and_wait(master, f"{line}\t", wanted)
            found.append(wanted)
            os.write(master, b"\x15")  # deletes the line
        return found
    finally:
        os.close(master)
        shell.kill()
        shell.wait()


def _write_and_wait(terminal: int, text: str, wanted: str, seconds: float = 60) -> None:
    os.write(terminal, text.encode())
    screen = ""
    while wanted not in screen:
        ready, _, _ = select.select([terminal], [], [], seconds)
        assert ready, f"{wanted!r} did not appear after {text!r}: {screen!r}"
        screen += re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]|[\x07\x08]", "", os.read(terminal, 65536).decode(errors="replace"))


def test_zsh_completes_in_a_real_shell(tmp_path):
    needs("other shells", shutil.which("zsh") is not None, "Debian: apt-get install zsh")
    setup = 'fpath=(~/.zfunc $fpath); autoload -Uz compinit; compinit -u; PROMPT="rea""dy "'
    assert _typed(["zsh", "-f", "-i"], setup, tmp_path) == list(TYPED.values())


def test_bash_completes_in_a_real_shell(tmp_path):
    setup = 'source .local/share/bash-completion/completions/paddle-llm; PS1="rea""dy "'
    assert _typed(["bash", "--norc", "--noprofile", "-i"], setup, tmp_path) == list(TYPED.values())
