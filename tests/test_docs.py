"""The documentation: commands marked with `$` run as typed, in the order of the page, in an empty folder; pages and links are complete."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from pydoc_data.topics import topics

import pytest

from docs._ext.plain_markdown import write_pages

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
ALL_PAGES = sorted(path for path in DOCS.rglob("*.md") if "_build" not in path.parts)
PAGES = [path for path in ALL_PAGES if "```console" in path.read_text(encoding="utf-8")]
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


@pytest.mark.parametrize("page", ALL_PAGES, ids=lambda page: page.stem)
def test_the_targets_of_links_exist(page):
    for link in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
        assert link.startswith("http") or (page.parent / link).exists(), link


def test_llms_txt_lists_every_page_with_a_sentence(tmp_path):
    names = [path.relative_to(DOCS).with_suffix("").as_posix() for path in ALL_PAGES]
    write_pages(DOCS, tmp_path, names)
    lines = [line for line in (tmp_path / "llms.txt").read_text().splitlines() if line.startswith("- ")]
    assert sorted(re.findall(r"\]\((.*?)\.md\)", "\n".join(lines))) == sorted(set(names) - {"index"})
    assert all(re.search(r"\.md\): .{20,}", line) for line in lines), lines
    for name in names:
        assert (tmp_path / f"{name}.md").exists()
    assert "{toctree}" not in (tmp_path / "index.md").read_text()


def test_a_page_outside_the_table_of_contents_is_an_error(tmp_path):
    (tmp_path / "index.md").write_text("# Title\n\nText.\n")
    (tmp_path / "lost.md").write_text("# Lost\n")
    with pytest.raises(ValueError, match="in no table of contents of index.md: lost"):
        write_pages(tmp_path, tmp_path / "out", ["index", "lost"])
