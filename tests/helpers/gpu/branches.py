"""The fake-GPU lane: runs tests that patch the device's predicates, and shows that every branch for GPUs was executed.

`make fake-gpu` (`python -m tests.helpers.gpu.branches`) prints coverage by branch of the modules that ask for the device,
and every question and line for GPUs that no test of the lane reached. `tests/fake_gpu/test_branches.py` requires that
these are exactly the ones that `EXCLUDED` lists.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.helpers.gpu.questions import PACKAGES, ROOT, Question, gpu_lines, questions, sources

# What the lane runs: in one process, on a CPU.
LANE = (
    "tests/fake_gpu",
    "tests/custom_ops/test_gpus.py",
    "tests/config/test_device.py",
    "tests/config/test_rules.py",
    "tests/gpu/test_rank_functions.py::test_each_rank_has_its_own_gpu_and_nccl",
    "tests/training/test_loss_scaling.py",
    "tests/training/test_random_states.py::test_another_gpu_continues_the_stream_of_the_first",
)
DESELECTED = ("tests/fake_gpu/test_branches.py",)
# (file, source line without indentation) of what stays unexecuted, and why.
_CPU_KERNELS = "kernels for CPUs, which are not installed on a GPU (tests/fake_gpu/test_training.py)"
EXCLUDED: dict[tuple[str, str], str] = {
    (
        "paddle_llm/models/patches/shared/cpu_attention.py",
        "if not whole_rows or config.use_flash_attention or not all_float32(*states):",
    ): _CPU_KERNELS,
    ("paddle_llm/models/patches/shared/cpu_attention.py", "or config.use_flash_attention"): _CPU_KERNELS,
}


@dataclass(frozen=True)
class Gap:
    """A question that got no answer of a GPU, or a line for GPUs that was not executed."""

    file: str
    line: int
    what: str

    @property
    def source(self) -> str:
        return (ROOT / self.file).read_text().splitlines()[self.line - 1].strip()

    @property
    def reason(self) -> str | None:
        return EXCLUDED.get((self.file, self.source))

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.what}: {self.source}"


@dataclass(frozen=True)
class Lane:
    """One run of the lane.

    Attributes:
        output: Of pytest.
        passed: Whether all tests passed.
        coverage: Report by branch of the modules that ask.
        questions: All questions.
        gaps: What was not executed, in order.
    """

    output: str
    passed: bool
    coverage: str
    questions: list[Question]
    gaps: list[Gap]


def run_lane() -> Lane:
    """Run the lane under coverage.py in a separate process."""
    asked = [question for file in sources() for question in questions(file)]
    with tempfile.TemporaryDirectory(prefix="fake-gpu-") as folder:
        answers, measured = Path(folder) / "answers.json", Path(folder) / "coverage.json"
        environment = os.environ | {"COVERAGE_FILE": f"{folder}/.coverage"}
        command = [
            sys.executable,
            "-m",
            "coverage",
            "run",
            "--branch",
            f"--source={','.join(PACKAGES)}",
            "-m",
            "pytest",
        ]
        command += ["-q", "-p", "no:cacheprovider", "-p", "tests.helpers.gpu.probe", "--gpu-answers", str(answers)]
        command += ["-m", "not slow", *LANE, *(f"--ignore={file}" for file in DESELECTED)]
        ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        if not answers.exists():
            return Lane(ended.stdout + ended.stderr, False, "", asked, [])
        files = sorted({question.file for question in asked})
        report = _coverage(["report", f"--include={','.join(files)}"], environment)
        _coverage(["json", "-q", "-o", str(measured)], environment)
        missing = {name: found["missing_lines"] for name, found in json.loads(measured.read_text())["files"].items()}
        given = {key: set(values) for key, values in json.loads(answers.read_text()).items()}
    gaps = [
        Gap(one.file, one.line, f"no answer of a GPU ({', '.join(sorted(given.get(one.key, ()))) or 'not asked'})")
        for one in asked
        if not one.is_answered(given.get(one.key, set()))
    ]
    gaps += [
        Gap(file, line, "not executed") for file in sources() for line in sorted(gpu_lines(file) & set(missing[file]))
    ]
    return Lane(ended.stdout + ended.stderr, ended.returncode == 0, report, asked, gaps)


def _coverage(arguments: list[str], environment: dict[str, str]) -> str:
    command = [sys.executable, "-m", "coverage", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout


def main() -> int:
    lane = run_lane()
    print(lane.output if not lane.passed else lane.output.splitlines()[-1])
    print(f"\n{lane.coverage}")
    excluded = [gap for gap in lane.gaps if gap.reason]
    unexplained = [gap for gap in lane.gaps if not gap.reason]
    print(
        f"{len(lane.questions)} questions for the device, {len(excluded)} excluded gaps, {len(unexplained)} unexplained"
    )
    for gap in excluded:
        print(f"  {gap}\n    {gap.reason}")
    for gap in unexplained:
        print(f"  UNEXPLAINED {gap}")
    return int(bool(unexplained) or not lane.passed)


if __name__ == "__main__":
    sys.exit(main())
