"""The matrix of tests/rehearse/matrix.py over NCCL: every layout that fits this machine's GPUs equals one GPU.

Never run: no machine with several GPUs and a GPU build of Paddle was at hand when this was written. The limits are those of
CPU ranks (float32, TF32 off); NCCL sums in other orders than gloo, so the later steps' rounding floor may need measuring.

    python -m pytest tests/gpu -rs
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from paddle_llm.config.layout import Layout
from paddle_llm.rehearse.case import Case
from paddle_llm.rehearse.oracle import prove
from paddle_llm.rehearse.ranks import run_ranks
from tests.gpu.conftest import gpus
from tests.gpu.test_one_gpu import HOST, case_on_gpu, places_of_states, with_settings
from tests.rehearse.matrix import Matrix, build_matrix
from tests.rehearse.options import Judge, layout_of
from tests.rehearse.proving import Prover


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test for each row that fits; one that says why where no row does."""
    if "row" not in metafunc.fixturenames:
        return
    names: list[str] = []
    if gpus() > 1:
        with tempfile.TemporaryDirectory() as folder:
            rows = build_matrix(Judge(Path(folder))).rows
        names = [name for name, row in rows.items() if 1 < layout_of(row).world_size <= gpus()]
    metafunc.parametrize("row", names or ["none fits"])


@pytest.fixture(scope="module")
def prover() -> Prover:
    return Prover(timeout=300)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def matrix(models: Path) -> Matrix:
    return build_matrix(Judge(models))


@pytest.mark.gpus(2)
def test_a_layout_equals_one_gpu(row: str, matrix: Matrix, models: Path, prover: Prover) -> None:
    verdict = prover(on_gpu(matrix.case(row, models)))
    assert verdict.passed, verdict.failures[0] if verdict.failures else "nothing was compared"


def on_gpu(case: Case) -> Case:
    return replace(case, config=case.config.model_copy(update={"device": "gpu"}))


def offloaded(folder: Path, stage: int) -> Case:
    return with_settings(
        case_on_gpu(folder, Layout(sharding=2, sharding_stage=stage)), sharding=f"stage{stage} offload"
    )


@pytest.mark.gpus(2)
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_sharding_with_offload_equals_one_gpu(tmp_path: Path, stage: int) -> None:
    verdict = prove(offloaded(tmp_path, stage))
    assert verdict.passed, verdict.failures[0]


@pytest.mark.gpus(2)
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_sharded_states_are_in_host_memory(tmp_path: Path, stage: int) -> None:
    for found in run_ranks(places_of_states, 2, offloaded(tmp_path, stage), device="gpu"):
        assert found == {"moment1": {HOST}, "moment2": {HOST}}
