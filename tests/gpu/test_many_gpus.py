"""Several GPUs: the matrix of tests/rehearse/matrix.py over NCCL, 16 bits in every kind of layout, a killed rank.

These tests have not been run on GPUs yet: no machine with several GPUs and a GPU build of Paddle was available. The limits are those
of CPU ranks (float32, TF32 off). NCCL sums in other orders than gloo, so the rounding floor of later steps may have to be measured.
`make test-gpu` runs these tests.
"""

from __future__ import annotations

import signal
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from paddle_llm.config.layout import Layout
from paddle_llm.parallel.process.failure_detection import EXIT_RESUME, PeerLostError
from paddle_llm.rehearse.case import Case
from paddle_llm.rehearse.oracle import prove
from paddle_llm.rehearse.ranks import RankError, run_ranks
from tests.gpu.conftest import gpus
from tests.gpu.on_ranks import lose_a_rank, state_places
from tests.gpu.trainings import (
    BF16,
    FP16,
    HALF_LIMIT,
    STATE_PLACES,
    TIMEOUT,
    assert_close,
    case_on,
    train,
    with_settings,
)
from tests.rehearse.matrix import Matrix, build_matrix
from tests.rehearse.options import RowChecker, layout_of
from tests.rehearse.proving import Prover


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrize by the rows that this machine has enough GPUs for; without one, the test is skipped with the reason."""
    if "row" not in metafunc.fixturenames:
        return
    names: list[str] = []
    if gpus() > 1:
        with tempfile.TemporaryDirectory() as folder:
            rows = build_matrix(RowChecker(Path(folder))).rows
        names = [name for name, row in rows.items() if 1 < layout_of(row).world_size <= gpus()]
    metafunc.parametrize("row", names or ["no row fits"])


@pytest.fixture(scope="module")
def prover() -> Prover:
    return Prover(timeout=300)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def matrix(models: Path) -> Matrix:
    return build_matrix(RowChecker(models))


@pytest.mark.gpus(2)
def test_a_layout_equals_one_gpu(row: str, matrix: Matrix, models: Path, prover: Prover) -> None:
    verdict = prover(on_gpu(matrix.case(row, models)))
    assert verdict.passed, verdict.failures[0] if verdict.failures else "nothing was compared"


def on_gpu(case: Case) -> Case:
    return replace(case, config=case.config.model_copy(update={"device": "gpu"}))


def offloaded(device: str, folder: Path, stage: int) -> Case:
    layout = Layout(sharding=2, sharding_stage=stage)
    settings = {"sharding": f"stage{stage} offload", "offload_optim": True}
    return with_settings(case_on(device, folder, layout), **settings)


@pytest.mark.slow
@pytest.mark.gpus(2)
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_sharding_with_offload_equals_one_device(tmp_path: Path, device: str, stage: int) -> None:
    verdict = prove(offloaded(device, tmp_path, stage))
    assert verdict.passed, verdict.failures[0]


@pytest.mark.slow
@pytest.mark.gpus(2)
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_sharded_states_are_in_host_memory(tmp_path: Path, device: str, stage: int) -> None:
    for found in run_ranks(state_places, 2, offloaded(device, tmp_path, stage), device=device):
        assert found == {name: {STATE_PLACES[device][True]} for name in ("moment1", "moment2")}


# ---- 16 bits: against one device in 16 bits -------------------------------------------------------------------------

TIED = {"model": {"tie_word_embeddings": True}}
RECOMPUTE = {"recompute": True, "recompute_granularity": "full"}
HALF = {
    "stage 1": (Layout(sharding=2, sharding_stage=1), {}),
    "stage 2": (Layout(sharding=2, sharding_stage=2), {}),
    "stage 2, small buckets": (Layout(sharding=2, sharding_stage=2), {"sharding_comm_buffer_size_MB": 1}),
    "tied weights in a pipeline": (Layout(pipeline=2), TIED),
    "stage 3 with recompute": (Layout(sharding=2, sharding_stage=3), RECOMPUTE),
    "sequence parallel": (Layout(tensor=2, sequence_parallel=True), {}),
    "data parallel": (Layout(data=2), {}),
}
FAST_HALF = ("stage 2",)


@pytest.mark.gpus(2)
@pytest.mark.parametrize("precision", [BF16, pytest.param(FP16, marks=pytest.mark.slow)], ids=["bf16", "fp16"])
@pytest.mark.parametrize(
    "name", [name if name in FAST_HALF else pytest.param(name, marks=pytest.mark.slow) for name in HALF]
)
def test_32_bit_gradients_of_16_bit_weights_equal_those_of_one_device(
    tmp_path: Path, device: str, name: str, precision: dict
) -> None:
    """amp_master_grad keeps gradients in `main_grad`, which each of these layouts reduces differently."""
    layout, settings = HALF[name]
    case = case_on(device, tmp_path, layout, evaluation=0, **precision, **settings)
    ranks, (alone,) = train(case), train(case.in_one_process())
    for rank in ranks:
        assert_close(rank, alone, HALF_LIMIT if device == "gpu" else 1e-4)
        assert rank.skipped == alone.skipped < len(alone.losses)
    if device == "gpu":
        assert {rank.device for rank in ranks} == {"gpu:0", "gpu:1"}


# ---- a lost rank ----------------------------------------------------------------------------------------------------


@pytest.mark.gpus(2)
@pytest.mark.parametrize("stage", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_killed_rank_ends_the_others(tmp_path: Path, device: str, stage: int) -> None:
    """The other rank waits in a collective of the second step, on a GPU in a kernel of NCCL."""
    layout = Layout(sharding=2, sharding_stage=stage) if stage else Layout(data=2)
    case = case_on(device, tmp_path, layout, evaluation=0)
    with pytest.raises(RankError) as failure:
        run_ranks(lose_a_rank, 2, case, device=device, timeout=TIMEOUT, grace=60, quiet=True)
    survivor, killed = failure.value.outcomes
    assert killed.exit_code == -signal.SIGKILL
    # On a CPU the collective raises an exception, which the entry scripts turn into the same exit code.
    ended = survivor.exit_code == EXIT_RESUME
    assert ended or (device == "cpu" and type(survivor.exception) is PeerLostError), survivor
    assert "rank 0: rank 1 is gone" in survivor.stderr
