"""Every branch on the device is tested with the answer of a GPU, and every line for GPUs is executed or has a reason."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.helpers.gpu import branches as gpu_branches
from tests.helpers.gpu import questions as gpu_questions
from tests.helpers.gpu.branches import EXCLUDED, run_lane


@pytest.mark.timeout(600)
def test_no_branch_for_gpus_is_unexecuted() -> None:
    lane = run_lane()
    assert lane.passed, lane.output
    unexplained = "\n".join(str(gap) for gap in lane.gaps if not gap.reason)
    assert not unexplained, f"execute these in tests/fake_gpu, or list them in EXCLUDED with a reason:\n{unexplained}"
    stale = EXCLUDED.keys() - {(gap.file, gap.source) for gap in lane.gaps}
    assert not stale, f"these are executed now or no longer exist; remove them from EXCLUDED: {stale}"
    assert "BrPart" in lane.coverage and "paddle_llm/parallel/process/start.py" in lane.coverage


SOURCE = """
def start(device, tensor, config):
    if device != "cpu":
        nccl()
    else:
        gloo()
    if not tensor.place.is_gpu_place() and config.fast:
        return cpu()
    if tensor.place.is_cpu_place():
        return cpu()
    kernel = _fused if config.use_flash_attention else plain
    return kernel(paddle.device.get_device().split(":")[0])

def _fused(where):
    if where.startswith("gpu"):
        return 1
    return 2

def _other(gradient):
    if getattr(gradient, "main_grad", None) is not None:
        return gradient.main_grad
    return _fused
"""


@pytest.fixture
def sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(gpu_questions, "ROOT", tmp_path)
    (tmp_path / "sample.py").write_text(SOURCE)
    gpu_questions._tree.cache_clear()
    return "sample.py"


def test_questions_are_found_with_their_answers(sample: str) -> None:
    assert [(one.text, one.on_gpu) for one in gpu_questions.questions(sample)] == [
        ("device != 'cpu'", True),
        ("tensor.place.is_gpu_place()", True),
        ("tensor.place.is_cpu_place()", False),
        ("config.use_flash_attention", True),
        ("paddle.device.get_device()", gpu_questions.DEVICE),
        ("where.startswith('gpu')", True),
        ("getattr(gradient, 'main_grad', None)", True),
        ("gradient.main_grad", True),
    ]


def test_lines_for_gpus_are_found(sample: str) -> None:
    lines = SOURCE.splitlines()
    found = [lines[line - 1].strip() for line in sorted(gpu_questions.gpu_lines(sample))]
    assert found == [
        "nccl()",
        "kernel = _fused if config.use_flash_attention else plain",
        'return kernel(paddle.device.get_device().split(":")[0])',
        "return 1",
        "return gradient.main_grad",
    ]


def test_answers_of_gpus_are_recognised(sample: str) -> None:
    by_text = {one.text: one for one in gpu_questions.questions(sample)}
    for text, cpu, gpu in (
        ("device != 'cpu'", False, True),
        ("tensor.place.is_cpu_place()", True, False),
        ("paddle.device.get_device()", "cpu", "gpu:3"),
        ("getattr(gradient, 'main_grad', None)", None, object()),
    ):
        question = by_text[text]
        assert not question.is_answered({gpu_questions.described(cpu)}), text
        assert question.is_answered({gpu_questions.described(value) for value in (cpu, gpu)}), text


def test_compiling_with_questions_changes_no_result(sample: str) -> None:
    values: list[tuple[str, object]] = []
    tree = gpu_questions.wrapped(
        ast.parse(SOURCE),
        sample,
        lambda question, node: ast.Call(ast.Name("seen", ast.Load()), [ast.Constant(question.text), node], []),
    )
    names: dict = {"seen": lambda text, value: values.append((text, value)) or value}
    exec(compile(tree, sample, "exec"), names)
    assert names["_fused"]("gpu:0") == 1 and names["_fused"]("cpu") == 2
    assert values == [("where.startswith('gpu')", True), ("where.startswith('gpu')", False)]


def test_every_module_that_asks_is_measured() -> None:
    measured = {file for file in gpu_questions.sources() if gpu_questions.questions(file)}
    assert {
        "paddle_llm/config/device.py",
        "paddle_llm/parallel/process/start.py",
        "custom_ops/fused_ln/binding.py",
    } <= measured
    assert all(file.startswith(gpu_branches.PACKAGES) for file in measured)


def test_the_page_counts_excluded_lines() -> None:
    page = (gpu_questions.ROOT / "docs/contributing/gpu_tests.md").read_text()
    assert len(EXCLUDED) == 2 and "two branches of kernels for CPUs" in page
