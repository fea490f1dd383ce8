"""The commands of the README run unchanged, its tables are current, and its translation is complete."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from pydoc_data.topics import topics

import pytest

from paddle_llm.config.help import defaults_table, finetune_table
from tests.helpers.forked import run_forked
from tests.helpers.pretrain_jobs import Toy, config, make_trainer, rows

ROOT = Path(__file__).parents[1]
README, CHINESE = ((ROOT / name).read_text() for name in ("README.md", "README_zh.md"))
# Commands that a separate test runs, or that need programs that this machine may not have.
ELSEWHERE = {
    "make quickstart": "test_the_quickstart_learns",
    "make test": "is what runs this",
    "python -m venv": "a fresh environment is what CI makes",
    "pip install": "a fresh environment is what CI makes",
    "python -m paddle.distributed.launch": "tests/distributed/test_run_pretrain.py, and --gpus needs GPUs",
    "paddle-llm generate output/tuned/model --chat": "tests/generation/test_command.py",
    "paddle-llm board": "tests/training/test_board.py",
    "paddle-llm rehearse configs/pretrain/llama_2_70b": "tests/rehearse/test_command.py; the smaller one is run here",
    "make parity": "the whole matrix takes an hour; tests/rehearse/test_matrix.py runs a part of it",
}


def _commands(text: str) -> list[str]:
    """Return the indented lines of a README without comments."""
    lines = re.findall(r"^    (\S.*)$", text, re.M)
    return [re.sub(r"\s+#.*$", "", line) for line in lines]


def _run(command: str, folder: Path) -> None:
    program, *words = shlex.split(command)
    assert program in ("python", "paddle-llm"), command
    if words[0] == "rehearse":  # it starts a fork server itself
        script = Path(sys.executable).with_name(program)
        done = subprocess.run([script, *words], cwd=folder, capture_output=True, text=True, check=False)
    else:
        module = ["-m", "paddle_llm.cli"] if program == "paddle-llm" else []
        done = run_forked(*module, *words, cwd=folder, timeout=600)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"


@pytest.mark.timeout(900)  # about twenty commands
def test_the_commands_run_as_typed(tmp_path):
    (tmp_path / "my_text").mkdir()
    for name, text in list(topics.items()):
        (tmp_path / "my_text" / f"{name.replace('/', '_')}.txt").write_text(text)
    for name in ("configs", "run_pretrain.py", "finetune_generation.py"):
        (tmp_path / name).symlink_to(ROOT / name)
    typed = [c for c in _commands(README) if not c.startswith(tuple(ELSEWHERE))]
    assert len(typed) >= 5
    for command in typed:
        _run(command, tmp_path)
    for model in ("mine", "tuned"):
        assert (tmp_path / "output" / model / "model/config.json").exists()


@pytest.mark.parametrize("text", [README, CHINESE], ids=["README.md", "README_zh.md"])
def test_the_python_of_the_readme_trains(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", text, re.S)
    names = {"model": make_trainer(config(tmp_path)).model, "samples": [Toy(50)[i] for i in range(50)]}
    exec(code, names)
    assert [row["step"] for row in rows(tmp_path / "output/notebook")] == [20]


def test_every_command_is_run_here_or_elsewhere():
    for prefix in ELSEWHERE:
        assert any(command.startswith(prefix) for command in _commands(README)), (
            f"{prefix} is not in the README any more"
        )


@pytest.mark.slow
@pytest.mark.timeout(1200)  # two minutes on two idle cores, for eight ranks
def test_the_quickstart_learns():
    """`make quickstart` without the installation. Its script exits 1 if the model is not better than token frequencies."""
    environment = os.environ | {"PYTHON": sys.executable}
    done = subprocess.run(
        ["launch/quickstart.sh"], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_table_of_defaults_is_current():
    for text in (README, CHINESE):
        table = text.split("<!-- defaults -->")[1].split("<!-- /defaults -->")[0]
        assert table.strip() == defaults_table().strip()
        table = text.split("<!-- finetune defaults -->")[1].split("<!-- /finetune defaults -->")[0]
        assert table.strip() == finetune_table().strip()


def test_the_translation_has_the_same_commands():
    assert _commands(CHINESE) == _commands(README)
    for pattern in (r"^#+ ", r"^\| ", r"^- ", r"\]\(([^)]+)\)"):
        count = [len(re.findall(pattern, text, re.M)) for text in (README, CHINESE)]
        assert count[0] == count[1], pattern


@pytest.mark.parametrize(
    "name", ["README.md", "README_zh.md", "CONTRIBUTING.md", "configs/README.md", "benchmarks/README.md"]
)
def test_the_targets_of_links_exist(name):
    file = ROOT / name
    for link in re.findall(r"\]\(([^)#]+)", file.read_text()):
        assert link.startswith("http") or (file.parent / link).exists(), f"{name}: {link}"
