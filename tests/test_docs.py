"""Pages in docs/ whose commands are marked with `$`: they run as typed, in the order of the page, in an empty folder."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from pydoc_data.topics import topics

import pytest

DOCS = Path(__file__).parents[1] / "docs"
PAGES = sorted(path for path in DOCS.rglob("*.md") if "```console" in path.read_text(encoding="utf-8"))
# Beginnings of commands that cannot run here -> why.
NOT_RUN = {
    "paddle-llm pretrain pretrain.json --gpus": "needs GPUs",
    "paddle-llm pretrain pretrain.json --nproc_per_node 8 --nnodes 4": "needs machines; tests/distributed/test_two_hosts.py",
    "mpirun -n 8": "a recipe of 7B parameters; tests/distributed/test_training_commands.py runs mpirun",
    "srun": "needs Slurm; tests/parallel/process/test_scheduler.py",
}


def commands(page: Path) -> list[str]:
    """Return the commands of a page."""
    blocks = re.findall(r"```console\n(.*?)```", page.read_text(encoding="utf-8"), re.S)
    return [line[2:] for block in blocks for line in block.splitlines() if line.startswith("$ ")]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_commands_of_a_page_run_as_typed(page, tmp_path):
    (tmp_path / "my_text").mkdir()
    for name, text in topics.items():
        (tmp_path / "my_text" / f"{name.replace('/', '_')}.txt").write_text(text)
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    ran = 0
    for command in commands(page):
        if command.startswith(tuple(NOT_RUN)):
            continue
        done = subprocess.run(
            shlex.split(command), cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        ran += 1
    assert ran


def test_commands_that_do_not_run_exist():
    typed = [command for page in PAGES for command in commands(page)]
    for prefix in NOT_RUN:
        assert any(command.startswith(prefix) for command in typed), f"{prefix} is in no page of docs/"
