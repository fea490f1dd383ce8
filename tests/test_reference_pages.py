"""The pages of docs/reference agree with the code: generated ones exactly, the others in all their names."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from docs.generate import PAGES, REFERENCE
from paddle_llm.checkpoint.output_folder import _FILES_OF_A_RUN
from paddle_llm.checkpoint.output_lock import RUN_LOCK
from paddle_llm.cli import rehearse
from paddle_llm.config.help import defaults_table, finetune_table
from paddle_llm.core import artifacts, errors

ROOT = Path(__file__).parents[1]
CODE = ("paddle_llm", "custom_ops", "launch", "tests")


def page(name: str) -> str:
    return (REFERENCE / name).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def generated(tmp_path_factory) -> Path:
    """Return a folder of new pages, written by a separate process: click keeps the first help option of a command."""
    folder = tmp_path_factory.mktemp("generated")
    subprocess.run([sys.executable, "-m", "docs.generate", str(folder)], cwd=ROOT, check=True)
    return folder


@pytest.mark.parametrize("name", PAGES)
def test_a_generated_page_is_current(name, generated):
    assert page(name) == (generated / name).read_text(encoding="utf-8"), "run: python -m docs.generate"


def test_every_flag_of_the_help_is_in_the_page_of_flags():
    documented = set(re.findall(r"^\| `--(\w+)`", page("flags.md"), re.M))
    assert documented == set(re.findall(r"^\| `--(\w+)`", defaults_table() + finetune_table(), re.M))


def test_every_exit_code_is_listed():
    modules = {**vars(errors), **vars(rehearse)}
    codes = {value for name, value in modules.items() if re.match("_?EXIT_", name) and isinstance(value, int)}
    listed = re.findall(r"^\| (\d+) \|", page("exit_codes.md"), re.M)
    assert sorted(map(int, listed)) == sorted(codes | {0})


def _own_variables() -> set[str]:
    found = set()
    for folder in CODE:
        for file in (ROOT / folder).rglob("*"):
            if file.is_file() and (file.suffix in (".py", ".sh", ".sbatch", ".yaml")):
                found |= set(re.findall(r"\b_?PADDLE_LLM_[A-Z_]+[A-Z]\b", file.read_text(encoding="utf-8")))
    return found


def test_every_variable_of_this_library_is_listed():
    assert set(re.findall(r"`(_?PADDLE_LLM_[A-Z_]+)`", page("environment.md"))) == _own_variables()


def _is_environ(node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute) and node.attr == "environ"


def _names_read(tree: ast.AST) -> Iterator[str]:
    """Yield names of environment variables that a module reads or sets as literals."""
    for node in ast.walk(tree):
        name: ast.AST | None = None
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
            if _is_environ(node.func.value) or node.func.attr == "getenv":
                name = node.args[0]
        elif isinstance(node, ast.Subscript) and _is_environ(node.value):
            name = node.slice
        elif isinstance(node, ast.Compare) and any(map(_is_environ, node.comparators)):
            name = node.left
        if isinstance(name, ast.Constant) and isinstance(name.value, str):
            yield name.value


def test_every_variable_that_the_product_reads_is_listed():
    listed = set(re.findall(r"`(\w+)`", page("environment.md")))
    read: set[str] = set()
    for folder in ("paddle_llm", "custom_ops"):
        for file in (ROOT / folder).rglob("*.py"):
            if "tests" not in file.parts:
                read |= set(_names_read(ast.parse(file.read_text(encoding="utf-8"))))
    assert len(read) > 20
    assert read <= listed


def test_every_entry_of_an_output_folder_is_listed():
    text = page("output_folder.md")
    entries = {RUN_LOCK, artifacts.MODEL_FOLDER, artifacts.ADAPTER_FOLDER, artifacts.CURVES_FOLDER}
    entries |= {name for name in _FILES_OF_A_RUN if "*" not in name and ".saving" not in name}
    entries |= {artifacts.MANIFEST, artifacts.TRAINER_STATE, artifacts.TRAINING_ARGS, artifacts.METER_STATE}
    entries |= {artifacts.ADAPTER_CONFIG, artifacts.ADAPTER_SAFETENSORS}
    listed = {name.rstrip("/") for name in re.findall(r"`([^`]+)`", text)}
    assert entries <= listed, entries - listed
    for pattern in (name for name in _FILES_OF_A_RUN if name.startswith("generated")):
        assert pattern.replace("[0-9]*", "<step>") in listed
