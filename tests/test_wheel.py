"""The wheel and the sdist: what is inside, and the commands from an unpacked wheel in an empty folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.helpers.corpus import make_corpus

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.timeout(900)  # the kernels are compiled


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The sdist and the wheel, the wheel built from the sdist; without the isolation that needs a package index."""
    folder = tmp_path_factory.mktemp("built")
    clone = folder / "clone"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    command = [sys.executable, "-m", "build", "--no-isolation", "--skip-dependency-check", "--outdir", str(folder)]
    # Paddle must not be imported while the wheel is built, as in pip's isolation.
    (folder / "paddle.py").write_text("raise ImportError('hidden')\n")
    environment = os.environ | {"PYTHONPATH": str(folder)}
    done = subprocess.run(
        [*command, str(clone)], env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def unpacked(built, tmp_path_factory):
    wheel = next(built.glob("*.whl"))
    folder = tmp_path_factory.mktemp("unpacked")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def _run(unpacked: Path, cwd: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the command from the unpacked wheel; a folder in PYTHONPATH comes before the checkout's installation."""
    command = [sys.executable, "-m", "paddle_llm.cli", *words]
    environment = os.environ | {"PYTHONPATH": str(unpacked)}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=240, check=False)


def test_the_wheel_is_for_every_python_version_and_has_everything(built, unpacked):
    assert "-py3-none-linux_" in next(built.glob("*.whl")).name
    inside = {path.relative_to(unpacked).as_posix() for path in unpacked.rglob("*") if path.is_file()}
    recipes = {
        f"paddle_llm/recipes/{path.relative_to(ROOT / 'configs')}" for path in (ROOT / "configs").rglob("*.json")
    }
    assert recipes <= inside
    assert {"paddle_llm/py.typed", "paddle_llm/training/launch/entry/pretrain.py"} <= inside
    assert any(name.startswith("fused_ln/lib/") and name.endswith(".so") for name in inside)
    assert not any(name.startswith(("tests/", "benchmarks/")) for name in inside)
    metadata = next(unpacked.glob("*.dist-info/METADATA")).read_text()
    assert "Author: the paddle_llm contributors" in metadata and "Typing :: Typed" in metadata


def test_the_sdist_builds_the_wheel_and_has_the_scripts(built):
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    assert {"setup.py", "run_pretrain.py", "LICENSE", "configs/schema.json", "custom_ops/installation.py"} <= names


def test_recipes_without_a_checkout(unpacked, tmp_path):
    listed = _run(unpacked, tmp_path, "recipes", "list")
    assert "pretrain/llama_2_70b_tp8_pp4 " in listed.stdout, listed.stderr
    assert _run(unpacked, tmp_path, "recipes", "copy", "quickstart", "mine.json").returncode == 0
    config = json.loads((tmp_path / "mine.json").read_text())
    # The shape that the recipe names is found in the package; what is missing are the user's files.
    done = _run(unpacked, tmp_path, "pretrain", "mine.json", "--nproc_per_node", "8")
    assert done.returncode == 2 and config["input_dir"] in done.stderr and "configs/models" not in done.stderr


def test_training_on_two_processes_without_a_checkout(unpacked, tmp_path):
    corpus = make_corpus(tmp_path)
    flags = f"--model_name_or_path configs/models/quickstart --tokenizer_name_or_path {corpus}/tokenizer --input_dir {corpus}/data "
    flags += (
        "--output_dir out --max_seq_length 64 --max_steps 2 --do_train --device cpu --report_to none --sharding stage2"
    )
    done = _run(unpacked, tmp_path, "pretrain", *flags.split(), "--nproc_per_node", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "out" / "model").is_dir()
    resolved = json.loads((tmp_path / "out" / "config.resolved.json").read_text())
    assert str(unpacked) in json.dumps(resolved)
