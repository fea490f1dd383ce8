"""The commands of the documentation run as typed, page by page, or carry a reason why not.

The first two tutorials are run once. Every other page starts with a copy of their folder, so that a page can use
`output/mine`, `output/tuned` and `my_data`, and no page depends on another one.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from pydoc_data.topics import topics

import pytest

from tests.helpers.doc_pages import DOCS, REASONS, ROOT, Block, all_pages, blocks, name_of
from tests.helpers.forked import run_forked
from tests.helpers.pretrain_jobs import Toy, config, make_trainer, rows

TUTORIAL = ("tutorials/pretrain_from_text", "tutorials/finetune_with_lora")
CHINESE = [page for page in all_pages() if page.is_relative_to(DOCS / "zh")]
PAGES = [page for page in all_pages() if page not in CHINESE and any(block.commands for block in blocks(page))]
# Typed after a command with --chat.
CHAT = "Who are you?\n/clear\n/exit\n"


def _runs(page: Path, slow: bool) -> list[Block]:
    """Return the blocks of a page that run in the fast or the slow suite."""
    return [block for block in blocks(page) if block.runs and (slow or "slow" not in block.marks)]


FAST = [page for page in PAGES if _runs(page, slow=False) and name_of(page) not in TUTORIAL]
SLOW = [page for page in PAGES if any("slow" in block.marks for block in _runs(page, slow=True))]


def _starts_processes(words: list[str]) -> bool:
    return words[0] in ("pretrain", "finetune") and "--nproc_per_node" in words or words[0] == "rehearse"


def _run(command: str, folder: Path, expected: int = 0) -> None:
    program, *words = shlex.split(command)
    if program == "paddle-llm" and not _starts_processes(words) and "--chat" not in words:
        done = run_forked("-m", "paddle_llm.cli", *words, cwd=folder, timeout=600)
    else:
        environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        done = subprocess.run(
            [program, *words], cwd=folder, env=environment, input=CHAT, capture_output=True, text=True, check=False
        )
    assert done.returncode == expected, f"{command}\n{done.stdout}\n{done.stderr}"


def _run_page(page: Path, folder: Path, slow: bool = False, others: bool = True) -> None:
    for block in blocks(page):
        if "file" in block.marks:
            shutil.copy2(ROOT / block.marks["file"], folder)
    for block in _runs(page, slow):
        if not others and "slow" not in block.marks:
            continue
        last = int(block.marks.get("exit code", 0))
        for number, command in enumerate(block.commands, 1):
            _run(command, folder, last if number == len(block.commands) else 0)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """Return the folder in which the first two tutorials have run."""
    folder = tmp_path_factory.mktemp("tutorials")
    (folder / "my_text").mkdir()
    for name, text in topics.items():
        (folder / "my_text" / f"{name.replace('/', '_')}.txt").write_text(text)
    for name in TUTORIAL:
        _run_page(DOCS / f"{name}.md", folder)
    return folder


@pytest.mark.timeout(900)
def test_the_tutorials_train_a_model_and_an_adapter(trained):
    assert (trained / "output/mine/model/config.json").is_file()
    assert (trained / "output/tuned/adapter/adapter_config.json").is_file()


@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", FAST, ids=name_of)
def test_the_commands_of_a_page_run_as_typed(page, trained, tmp_path):
    folder = tmp_path / "folder"
    shutil.copytree(trained, folder)
    _run_page(page, folder)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", SLOW, ids=name_of)
def test_all_commands_of_a_page_run_as_typed(page, trained, tmp_path):
    folder = tmp_path / "folder"
    shutil.copytree(trained, folder)
    _run_page(page, folder, slow=True, others=name_of(page) not in TUTORIAL)  # `trained` has run the others


@pytest.mark.hf
def test_an_export_answers_in_transformers(trained, tmp_path):
    _run(f"paddle-llm export {trained}/output/tuned exports/tuned_hf --target hf", tmp_path)
    _run(f"python {ROOT}/examples/ask_transformers.py exports/tuned_hf 'Who are you?'", tmp_path)


@pytest.mark.parametrize("folder", ["", "zh/"])
def test_the_python_of_the_documentation_trains(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (code,) = (block.text for block in blocks(DOCS / f"{folder}how-to/use_from_python.md"))
    names = {"model": make_trainer(config(tmp_path)).model, "samples": [Toy(50)[i] for i in range(50)]}
    exec(code, names)
    assert [row["step"] for row in rows(tmp_path / "output/notebook")] == [20]


def test_every_command_runs_or_has_a_reason():
    wrong = []
    for page in PAGES:
        for block in blocks(page):
            reason, other = block.marks.get("not run"), block.marks.get("run by")
            if reason is not None and not reason.startswith(REASONS):
                wrong.append(f"{name_of(page)}: {reason!r} begins with none of {REASONS}")
            for file in re.findall(r"tests/\S+\.py", f"{reason} {other}"):
                wrong += [] if (ROOT / file).is_file() else [f"{name_of(page)}: {file} does not exist"]
            if other is not None:
                # It reads the page, or the README with the same commands, or names what it runs.
                text = (ROOT / ("README.md" if other == "tests/test_readme.py" else other)).read_text(encoding="utf-8")
                words = {_distinctive_word(command) for command in block.commands}
                if name_of(page) not in text:
                    wrong += [f"{name_of(page)}: {other} does not run {word}" for word in words if word not in text]
    assert not wrong, "\n".join(wrong)


def _distinctive_word(command: str) -> str:
    """Return the word by which a test can be recognised that runs a command: the subcommand, script or target."""
    program, *words = shlex.split(command)
    if program not in ("paddle-llm", "make", "python"):
        return program
    return next(word for word in words if not word.startswith("-")).removesuffix(".py").split("/")[-1]
