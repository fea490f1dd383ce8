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
from importlinter.api import read_configuration

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


# A folder of the repository, or a file in its root, in backticks.
_PATH = re.compile(
    r"`((?:paddle_llm|custom_ops|configs|launch|benchmarks|docs|tests|\.ci|\.github)/[\w./-]*|[\w-]+\.(?:py|toml)|CONTRIBUTING\.md|Makefile)`"
)


@pytest.mark.parametrize("page", ALL_PAGES, ids=lambda page: page.stem)
def test_the_files_that_a_page_names_exist(page):
    named = _PATH.findall(page.read_text(encoding="utf-8"))
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_every_task_of_the_tour_names_a_file_of_the_product():
    tour = (DOCS / "contributing" / "tour.md").read_text(encoding="utf-8")
    rows = [line.strip("| ").split(" | ") for line in tour.splitlines() if line.startswith("| ")]
    tasks = [row for row in rows if row[0] != "to change"]
    assert len(tasks) >= 20
    assert len({row[0] for row in tasks}) == len(tasks)
    for row in tasks:
        assert _PATH.search(row[1]), row
        assert all(
            name.startswith(("tests/", "custom_ops/tests/")) for name in re.findall("`(.*?)`", " ".join(row[2:]))
        )


def _contract(kind: str) -> dict:
    (contract,) = (
        one for one in read_configuration(str(ROOT / "pyproject.toml"))["contracts_options"] if one["type"] == kind
    )
    return contract


def _names(modules: list[str]) -> list[str]:
    return [module.replace("paddle_llm.", "") for module in modules]


def test_the_diagram_of_the_architecture_equals_the_contract_of_import_linter():
    text = (DOCS / "concepts" / "architecture.md").read_text(encoding="utf-8")
    diagram = text.split("<!-- layers -->")[1].split("<!-- /layers -->")[0].strip().splitlines()[1:-1]
    layers = [re.split(r" {2,}", line)[0] for line in diagram]
    (line,) = (number for number, layer in enumerate(layers) if layer.startswith("- -"))
    assert layers[:line] + layers[line + 1 :] == _names(_contract("layers")["layers"])
    assert sorted(layers[line + 1 :]) == sorted(_names(_contract("forbidden")["source_modules"]))
