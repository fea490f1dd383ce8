"""The documentation: commands marked with `$` run as typed, in the order of the page; pages, links and translations are complete."""

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
from tests.helpers.forked import run_forked
from tests.helpers.pretrain_jobs import Toy, config, make_trainer, rows

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
ALL_PAGES = sorted(path for path in DOCS.rglob("*.md") if "_build" not in path.parts)
CHINESE = [path for path in ALL_PAGES if path.is_relative_to(DOCS / "zh")]
PAGES = [path for path in ALL_PAGES if "```console" in path.read_text(encoding="utf-8") and path not in CHINESE]
# Beginnings of commands that cannot run here -> why.
NOT_RUN = {
    "paddle-llm pretrain pretrain.json --gpus": "needs GPUs",
    "paddle-llm pretrain pretrain.json --nproc_per_node 8 --nnodes 4": "needs machines; tests/distributed/test_two_hosts.py",
    "mpirun -n 8": "a recipe of 7B parameters; tests/distributed/test_training_commands.py runs mpirun",
    "srun": "needs Slurm; tests/parallel/process/test_scheduler.py",
    "python -m venv": "a fresh environment is what CI makes",
    "pip install": "a fresh environment is what CI makes",
    "make quickstart": "tests/test_readme.py runs its script",
    "make release-check": "tests/test_release.py and tests/test_wheel.py run its checks",
    "git tag": "only a maintainer tags",
    "python -m twine": "only a maintainer publishes",
    "make parity": "the whole matrix takes an hour; tests/rehearse/test_matrix.py runs a part of it",
    "paddle-llm rehearse cluster.json": "tests/test_readme.py runs it; the smaller one is run here",
    "paddle-llm board": "tests/training/test_board.py",
    "paddle-llm generate output/tuned/model --chat": "tests/generation/test_command.py",
    "python -m paddle.distributed.launch --gpus": "needs GPUs",
}
# Pages that continue in the folder of the pages before them.
TUTORIAL = ["tutorials/pretrain_from_text", "tutorials/finetune_with_lora", "how-to/generate", "how-to/export"]


def commands(page: Path) -> list[str]:
    """Return the commands of a page."""
    blocks = re.findall(r"```console\n(.*?)```", page.read_text(encoding="utf-8"), re.S)
    return [line[2:] for block in blocks for line in block.splitlines() if line.startswith("$ ")]


def commands_to_run(page: Path) -> list[str]:
    """Return the commands of a page that run here."""
    return [command for command in commands(page) if not command.startswith(tuple(NOT_RUN))]


def name_of(page: Path) -> str:
    """Return the name of a page, like "how-to/export"."""
    return page.relative_to(DOCS).with_suffix("").as_posix()


COURSES = [
    [DOCS / f"{name}.md" for name in TUTORIAL],
    *([page] for page in PAGES if name_of(page) not in TUTORIAL and commands_to_run(page)),
]


def _run(command: str, folder: Path) -> None:
    program, *words = shlex.split(command)
    if program == "paddle-llm" and words[0] in ("data", "generate", "export", "convert"):  # they start no ranks
        done = run_forked("-m", "paddle_llm.cli", *words, cwd=folder, timeout=600)
    else:
        environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        done = subprocess.run(
            [program, *words], cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"


@pytest.mark.timeout(900)
@pytest.mark.parametrize("course", COURSES, ids=lambda course: course[0].stem)
def test_the_commands_of_a_page_run_as_typed(course, tmp_path):
    (tmp_path / "my_text").mkdir()
    for name, text in topics.items():
        (tmp_path / "my_text" / f"{name.replace('/', '_')}.txt").write_text(text)
    for page in course:
        typed = commands_to_run(page)
        assert typed, page
        for command in typed:
            _run(command, tmp_path)


def test_pages_of_which_no_command_runs():
    without = [name_of(page) for page in PAGES if not commands_to_run(page)]
    assert without == ["contributing/releasing", "installation", "tutorials/quickstart"]


@pytest.mark.parametrize("folder", ["", "zh/"])
def test_the_python_of_the_documentation_trains(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (DOCS / f"{folder}how-to/use_from_python.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.S)
    names = {"model": make_trainer(config(tmp_path)).model, "samples": [Toy(50)[i] for i in range(50)]}
    exec(code, names)
    assert [row["step"] for row in rows(tmp_path / "output/notebook")] == [20]


@pytest.mark.parametrize("page", CHINESE, ids=name_of)
def test_a_translation_has_the_same_commands_and_structure(page):
    original = DOCS / page.relative_to(DOCS / "zh")
    assert commands(page) == commands(original)
    for pattern in (r"^#+ ", r"^\| ", r"^- ", r"\]\(([^)]+)\)"):
        count = [len(re.findall(pattern, one.read_text(encoding="utf-8"), re.M)) for one in (original, page)]
        assert count[0] == count[1], pattern


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
