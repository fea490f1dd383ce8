"""The wheel and the sdist: what is inside, and the commands from an unpacked wheel in an empty folder."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.corpus import make_corpus
from tests.helpers.release import release_module

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


# --- `make release-check`: what it compares


@pytest.fixture(scope="module")
def version(built) -> str:
    return release_module("checkout").version_of(built / "clone")


def test_the_release_check_accepts_what_was_built(built, version):
    archives = release_module("archives")
    assert list(archives.wheel_problems(built / "clone", next(built.glob("*.whl")), version)) == []
    assert list(archives.sdist_problems(built / "clone", next(built.glob("*.tar.gz")), version)) == []


def _wheel_without(name: str) -> Callable[[dict[str, bytes]], None]:
    def change(files: dict[str, bytes]) -> None:
        for file in [file for file in files if name in file]:
            del files[file]

    return change


WHEELS = {
    "recipe": (_wheel_without("recipes/pretrain/quickstart.json"), "lacks paddle_llm/recipes/pretrain/quickstart.json"),
    "schema": (_wheel_without("schema_finetune.json"), "lacks paddle_llm/recipes/schema_finetune.json"),
    "many files": (_wheel_without("recipes/models"), " more. Build it again"),
    "py.typed": (_wheel_without("py.typed"), "lacks paddle_llm/py.typed"),
    "module": (_wheel_without("paddle_llm/cli/recipes.py"), "lacks paddle_llm/cli/recipes.py"),
    "source of a kernel": (_wheel_without("rms_norm_cuda.cu"), "lacks fused_ln/csrc/rms_norm_cuda.cu"),
    "kernel": (_wheel_without("fused_ln/lib/"), "has no built kernel"),
    "changed": (
        lambda files: files.update({"fused_ln/binding.py": b""}),
        "has other contents in fused_ln/binding.py",
    ),
    "foreign": (lambda files: files.update({"tests/x.py": b""}), "must not have tests/x.py"),
    "license": (_wheel_without("LICENSE"), "has no LICENSE"),
    "command": (_wheel_without("entry_points.txt"), "does not install the command"),
    "metadata": (_wheel_without("METADATA"), "Version is None"),
}


@pytest.mark.parametrize(("change", "message"), WHEELS.values(), ids=WHEELS)
def test_the_release_check_reports_a_wrong_wheel(change, message, built, version, tmp_path):
    archives = release_module("archives")
    wheel = next(built.glob("*.whl"))
    files = archives.read_wheel(wheel)
    change(files)
    changed = tmp_path / wheel.name
    with zipfile.ZipFile(changed, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    assert message in "\n".join(archives.wheel_problems(built / "clone", changed, version))


def test_the_release_check_reports_a_wheel_of_another_version(built, version):
    problems = release_module("archives").wheel_problems(built / "clone", next(built.glob("*.whl")), "9.9.9")
    assert f"Version is {version}, not 9.9.9" in "\n".join(problems)


@pytest.mark.parametrize(
    ("dropped", "added", "message"),
    [
        ("custom_ops/installation.py", "", "lacks custom_ops/installation.py"),
        ("configs/schema.json", "", "lacks configs/schema.json"),
        ("", "custom_ops/notes.txt", "must not have custom_ops/notes.txt"),
        ("PKG-INFO", "", "Version is None"),
    ],
)
def test_the_release_check_reports_a_wrong_sdist(dropped, added, message, built, version, tmp_path):
    changed = _changed_sdist(next(built.glob("*.tar.gz")), tmp_path, dropped, added)
    problems = "\n".join(release_module("archives").sdist_problems(built / "clone", changed, version))
    assert message in problems


def _changed_sdist(sdist: Path, folder: Path, dropped: str, added: str) -> Path:
    changed = folder / sdist.name
    with tarfile.open(sdist) as source, tarfile.open(changed, "w:gz") as target:
        for member in source.getmembers():
            if not dropped or member.name.split("/", 1)[-1] != dropped:
                target.addfile(member, source.extractfile(member) if member.isfile() else None)
        if added:
            target.addfile(tarfile.TarInfo(f"{source.getnames()[0].split('/')[0]}/{added}"), io.BytesIO())
    return changed


def test_the_release_check_reports_an_sdist_that_does_not_build(built, tmp_path):
    archives = release_module("archives")
    changed = _changed_sdist(next(built.glob("*.tar.gz")), tmp_path, "custom_ops/installation.py", "")
    wheel = next(built.glob("*.whl"))
    options = ["--no-isolation", "--skip-dependency-check"]
    (problem,) = archives.rebuild_problems(changed, wheel, *options)
    assert "does not build a wheel" in problem and "installation" in problem


@pytest.mark.slow
def test_the_sdist_builds_the_same_wheel(built, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(built))  # hides Paddle, as for the first wheel
    options = ["--no-isolation", "--skip-dependency-check"]
    wheel, sdist = next(built.glob("*.whl")), next(built.glob("*.tar.gz"))
    assert list(release_module("archives").rebuild_problems(sdist, wheel, *options)) == []
