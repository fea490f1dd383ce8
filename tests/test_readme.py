"""The commands of the README run unchanged, it shows what they print, and its translation is complete."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from pydoc_data.topics import topics

import pytest

from tests.helpers.forked import run_forked

ROOT = Path(__file__).parents[1]
README, CHINESE = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README_zh.md"))
# Commands that another test runs, or that need programs that this machine may not have.
ELSEWHERE = {
    "make quickstart": "tests/test_quickstart.py runs its script",
    "make test": "is what runs this",
    "paddle-llm pretrain pretrain.json --gpus": "needs GPUs; tests/distributed/test_training_commands.py on CPUs",
    "paddle-llm generate output/tuned --chat": "tests/generation/test_command.py",
}


def _commands(text: str) -> list[str]:
    """Return the lines of the blocks of commands of a README."""
    return [line for block in re.findall(r"```bash\n(.*?)```", text, re.S) for line in block.splitlines()]


def _run(command: str, folder: Path) -> str:
    """Run a command as typed and return what it prints to stdout."""
    program, *words = shlex.split(command)
    assert program in ("python", "paddle-llm"), command
    if words[0] in ("rehearse", "finetune"):  # they start processes
        script = Path(sys.executable).with_name(program)
        done = subprocess.run([script, *words], cwd=folder, capture_output=True, text=True, check=False)
    else:
        module = ["-m", "paddle_llm.cli"] if program == "paddle-llm" else []
        done = run_forked(*module, *words, cwd=folder, timeout=600)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def _write_base_model(folder: Path) -> None:
    """Train `models/base` from the corpus of the README's first commands, with the script of the checkout."""
    (folder / "run_pretrain.py").symlink_to(ROOT / "run_pretrain.py")
    _run(
        "python run_pretrain.py --model_name_or_path configs/models/quickstart --tokenizer_name_or_path data/tokenizer "
        "--input_dir data --output_dir base --max_seq_length 256 --max_steps 4 --do_train",
        folder,
    )
    shutil.copytree(folder / "base" / "model", folder / "models" / "base")


@pytest.mark.timeout(900)
def test_the_commands_run_as_typed(tmp_path):
    (tmp_path / "my_text").mkdir()
    for name, text in list(topics.items()):
        (tmp_path / "my_text" / f"{name.replace('/', '_')}.txt").write_text(text)
    typed = [c for c in _commands(README) if not c.startswith(tuple(ELSEWHERE))]
    assert len(typed) >= 9
    printed = {}
    for command in typed:
        if "models/base" in command and not (tmp_path / "models").exists():
            _write_base_model(tmp_path)
        printed[command.split()[1]] = _run(command, tmp_path)
    assert (tmp_path / "output" / "tuned" / "model" / "config.json").exists()
    assert (tmp_path / "exports" / "tuned" / "config.json").exists()
    for text in (README, CHINESE):
        assert _rehearsal(re.findall(r"```text\n(.*?)```", text, re.S)[0]) == _rehearsal(printed["rehearse"])


def _rehearsal(text: str) -> tuple[list[str], str, str]:
    """Return the quantities with their limits, what was not covered, and the verdict without its time."""
    rows = [
        re.sub(r"\s+", " ", f"{cells[1]}{cells[3]}") for line in text.splitlines() if len(cells := line.split("│")) == 8
    ]
    (not_covered,) = re.findall(r"^not covered.*$", text, re.M)
    (verdict,) = re.findall(r"^PASSED.*comparisons", text, re.M)
    assert len(rows) == 7, text
    return rows, not_covered.strip(), verdict


def test_every_command_is_run_here_or_elsewhere():
    for prefix in ELSEWHERE:
        assert any(command.startswith(prefix) for command in _commands(README)), (
            f"{prefix} is not in the README any more"
        )


@pytest.mark.parametrize("text", [README, CHINESE], ids=["README.md", "README_zh.md"])
def test_a_readme_has_at_most_150_lines_and_no_other_commands(text):
    assert len(text.splitlines()) <= 150
    assert set(re.findall(r"^```(.+)$", text, re.M)) == {"bash", "text"}
    assert not re.findall(r"^    \S", text, re.M)


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
