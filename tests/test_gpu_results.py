"""The table of GPU tests, made from real pytest output, from the script of the kernels, and from both in one folder."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.gpu import results as gpu_results
from tests.helpers.gpu.results import Result

ROOT = Path(__file__).parents[1]
SAMPLE = """
import pytest
from tests.helpers.skips import needs

@pytest.fixture
def broken():
    raise OSError("no card")

@pytest.fixture
def leaves_late():
    yield
    assert not "torn down"

@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_device(device):
    needs("a GPU", device == "cpu", "2 for this test; this machine has 1")

def test_fails():
    assert [1.0] == [2.0], "losses | differ"

def test_error(broken):
    pass

def test_teardown(leaves_late):
    pass

@pytest.mark.xfail(reason="Paddle 3.3.1")
def test_expected():
    raise ValueError
"""
SMI = "#!/bin/sh\necho 'NVIDIA H200, 570.86.15'\necho 'NVIDIA H200, 570.86.15'\n"


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Set the environment of a machine whose nvidia-smi lists two cards."""
    program = tmp_path_factory.mktemp("machine") / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text(SMI)
    program.chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if name != "CI"}
    return kept | {"PATH": f"{program.parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}


def pytest_rows(folder: Path, environment: dict[str, str], sample: str = SAMPLE) -> list[Result]:
    """Return the rows that a real session of `sample` writes into `folder`/results."""
    (folder / "test_sample.py").write_text(sample)
    plugins = ("tests.helpers.skips", "tests.helpers.gpu.report", "no:cacheprovider")
    command = [sys.executable, "-m", "pytest", *(word for name in plugins for word in ("-p", name))]
    command += ["--gpu-results", str(folder / "results/paddle_llm.json"), "--rootdir", str(folder), str(folder)]
    subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    return gpu_results.load(folder / "results")


@pytest.fixture(scope="module")
def sampled(tmp_path_factory: pytest.TempPathFactory, machine: dict[str, str]) -> list[Result]:
    return pytest_rows(tmp_path_factory.mktemp("sample"), machine)


def main(folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.helpers.gpu.results", str(folder)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def cells(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def test_every_outcome_of_pytest_is_a_row(sampled):
    rows = {row.test.removeprefix("test_sample.py::"): row for row in sampled}
    assert {name: row.result for name, row in rows.items()} == {
        "test_device[cpu]": "passed",
        "test_device[gpu]": "skipped",
        "test_fails": "failed",
        "test_error": "error",
        "test_teardown": "error",
        "test_expected": "skipped",
    }
    assert rows["test_device[gpu]"].detail == "needs a GPU: 2 for this test; this machine has 1"
    assert "losses | differ" in rows["test_fails"].detail and "[1.0] == [2.0]" in rows["test_fails"].trace
    assert "no card" in rows["test_error"].trace and "torn down" in rows["test_teardown"].trace
    assert {row.card for row in rows.values()} == {"2 x NVIDIA H200"}
    (versions,) = {row.versions for row in rows.values()}
    assert re.fullmatch(r"paddlepaddle(-gpu)? 3\S+, paddlenlp 3\S+, python 3\S+, driver 570.86.15", versions)


def test_the_table_and_the_file_to_attach(tmp_path, machine, sampled):
    rows = sampled
    gpu_results.save(tmp_path / "results/paddle_llm.json", rows)
    kernels = Result("custom_ops: times", "passed", 1.5, "NVIDIA H200", "torch 2.13.0", f"| ms |\n| 1 |\n{ROOT}/x")
    gpu_results.save(tmp_path / "results/custom_ops.json", [kernels])
    ended = main(tmp_path / "results", machine)
    assert ended.returncode == 1
    head, _, *body = cells(ended.stdout)
    assert head == ["test", "result", "seconds", "card", "versions"]
    assert [row[0] for row in body] == ["custom_ops: times", *(row.test for row in rows)]
    assert body[0][1:] == ["passed", "1.5", "NVIDIA H200", "torch 2.13.0"]
    assert "2 error, 1 failed, 2 passed, 2 skipped" in ended.stdout
    written = (tmp_path / "results" / gpu_results.REPORT).read_text()
    assert gpu_results.table([kernels, *rows]) in written and "\n| ms |\n| 1 |\n./x\n" in written
    assert re.search(r"## test_sample.py::test_fails\n\n```text\n[^`]*\[1.0\] == \[2.0\]", written)
    assert str(ROOT) not in written and str(tmp_path / "results" / gpu_results.REPORT) in ended.stdout


def test_a_file_that_cannot_be_collected_is_a_row(tmp_path, machine):
    (row,) = pytest_rows(tmp_path, machine, "import no_such_module\n")
    assert (row.result, row.detail) == ("error", "cannot be collected") and "no_such_module" in row.trace


def test_success_needs_a_row_and_no_failure(tmp_path, machine):
    assert main(tmp_path / "none", machine).returncode == 1
    gpu_results.save(
        tmp_path / "some/a.json", [Result("a", "passed", 0.1, "c", "v"), Result("b", "skipped", 0, "c", "v")]
    )
    assert main(tmp_path / "some", machine).returncode == 0


def test_a_check_of_the_kernels_is_a_row():
    def wrong() -> str:
        raise AssertionError("5 rows: y differs\nby 3")

    passed = gpu_results.timed("right", lambda: "60 combinations", "card", "v")
    failed = gpu_results.timed("wrong", wrong, "card", "v")
    assert (passed.result, passed.detail) == ("passed", "60 combinations")
    assert (failed.result, failed.detail) == ("failed", "5 rows: y differs")
    assert failed.trace == "AssertionError: 5 rows: y differs\nby 3"


def test_the_script_of_the_kernels_reports_what_is_missing(tmp_path, machine):
    """torch or a GPU is missing here: the row is skipped, and the rows that exist in the folder are kept."""
    gpu_results.save(tmp_path / "results/paddle_llm.json", [Result("tests/gpu::a", "passed", 0.1, "c", "v")])
    script = ROOT / "custom_ops/tests/gpu/run.sh"
    environment = machine | {"PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": ""}
    command = ["bash", str(script), "--quick", "--results", str(tmp_path / "results")]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 2 and ended.stderr.startswith("needs a GPU"), ended.stderr
    rows = cells(ended.stdout)
    assert [row[0] for row in rows[2:]] == ["custom_ops: all", "tests/gpu::a"]
    assert rows[2][1].startswith("skipped: needs a GPU")
    (written,) = json.loads((tmp_path / "results/custom_ops.json").read_text())
    assert written["card"] == "2 x NVIDIA H200"


def test_make_installs_nothing():
    words = ["test-gpu", "PYTHON=/x/python", "GPU_RESULTS=out"]
    shown = subprocess.run(["make", "-n", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "pip" not in shown and ".venv" not in shown
    assert "/x/python -m pytest tests/gpu -m 'gpu'" in shown and "--gpu-results out/paddle_llm.json" in shown
    assert "PYTHON=/x/python custom_ops/tests/gpu/run.sh --results out" in shown


@pytest.mark.slow
def test_make_prints_one_table_of_both(tmp_path, machine):
    """Without a GPU every row is a skip with its reason."""
    words = [f"PYTHON={sys.executable}", f"GPU_RESULTS={tmp_path}/out", "GPU_TESTS=tests/gpu/test_operations.py"]
    environment = machine | {"CUDA_VISIBLE_DEVICES": ""}
    ended = subprocess.run(["make", "test-gpu", *words], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    head, _, *rows = cells(ended.stdout)
    assert head == list(gpu_results.COLUMNS) and len(rows) == 7
    assert rows[0][0] == "custom_ops: all" and all(row[1].startswith("skipped: needs a GPU") for row in rows)
    assert (tmp_path / "out" / gpu_results.REPORT).is_file()
