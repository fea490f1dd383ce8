"""The package from outside: it is imported quickly, shows help quickly, and reports a missing Paddle."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import paddle_llm
from paddle_llm.data.tokenizer import train_tokenizer
from tests.helpers.corpus import english_and_chinese
from tests.helpers.models.tiny import write_llama
from tests.helpers.processes import processor_seconds_of_children

ROOT = Path(__file__).parents[1]


def _python(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("words", [("-c", "import paddle_llm"), ("-m", "paddle_llm.cli", "--help")])
def test_importing_and_help_take_less_than_half_a_second(words):
    """The least of three processor times is compared, so that other work on the machine does not count."""
    spent = []
    for _ in range(3):
        with processor_seconds_of_children() as seconds:
            assert _python(*words).returncode == 0
        spent += seconds
    assert min(spent) < 0.5


@pytest.mark.parametrize("command", ["tokenizer train", "data build", "data inspect", "generate", "board"])
def test_every_command_has_help_with_an_example(command):
    done = _python("-m", "paddle_llm.cli", *command.split(), "--help")
    assert done.returncode == 0 and "Example" in done.stdout and f"paddle-llm {command}" in done.stdout


def test_a_wrong_command_ends_with_2_and_a_hint():
    done = _python("-m", "paddle_llm.cli", "tokeniser")
    assert done.returncode == 2 and "No such command" in done.stderr and "Traceback" not in done.stderr


def test_a_missing_paddle_is_one_message(tmp_path):
    write_llama(tmp_path / "llama")
    train_tokenizer(english_and_chinese(300), str(tmp_path / "tokenizer"), 700)
    flags = [
        "--model_name_or_path",
        str(tmp_path / "llama"),
        "--tokenizer_name_or_path",
        str(tmp_path / "tokenizer"),
        "--input_dir",
        str(tmp_path),
        "--output_dir",
        str(tmp_path / "o"),
        "--do_train",
        "--max_seq_length=64",
    ]
    code = (
        f"import sys; sys.modules['paddle'] = None; from paddle_llm.training.run import main; main({json.dumps(flags)})"
    )
    done = _python("-c", code)
    assert done.returncode == 2, done.stderr
    assert (
        "Paddle is not installed" in done.stderr and "paddle_llm[cpu]" in done.stderr and "Traceback" not in done.stderr
    )
    assert not (tmp_path / "o").exists()


def test_the_trainer_is_imported_lazily():
    code = "import paddle_llm, sys; assert 'paddle' not in sys.modules; print(paddle_llm.PretrainTrainer.__name__)"
    assert _python("-c", code).stdout.strip().endswith("PretrainTrainer")


def test_the_citation_names_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == paddle_llm.__version__ and citation["license"] == "Apache-2.0"


def test_workflows_call_targets_of_the_makefile():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    called = set()
    for file in (ROOT / ".github" / "workflows").glob("*.yml"):
        (job,) = yaml.safe_load(file.read_text())["jobs"].values()
        for step in job["steps"]:
            called |= set(re.findall(r"make ([a-z-]+)", step.get("run", "")))
    assert {"lint", "test", "docs", "wheel", "release-check"} <= called <= targets
