"""Functions that run on GPU ranks set their environment before Paddle is imported. These tests do not need a GPU."""

from __future__ import annotations

import subprocess
import sys

import pytest

from paddle_llm.rehearse.ranks import RankError, run_ranks
from tests.gpu import on_ranks

pytestmark = pytest.mark.cpu_only
# Modules whose functions the tests of this folder pass to `run_ranks`.
MODULES = ("tests.gpu.on_ranks", "tests.helpers.finetune_jobs", "paddle_llm.rehearse.oracle")


def test_modules_of_rank_functions_do_not_import_paddle():
    code = f"import sys, {', '.join(MODULES)}; print([m for m in ('paddle', 'paddlenlp') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_each_rank_has_its_own_gpu_and_nccl():
    names = ["FLAGS_selected_gpus", "PADDLE_DISTRI_BACKEND", "PADDLE_TRAINER_ID", "FLAGS_x"]
    ranks = run_ranks(on_ranks.environment, 2, names, device="gpu", env={"FLAGS_x": "1"})
    assert ranks == [dict(zip(names, (str(rank), "nccl", str(rank), "1"), strict=True)) for rank in range(2)]


def test_a_function_that_imports_paddle_too_early_is_refused():
    from tests.helpers.gpu.kernels import network

    with pytest.raises(
        RankError, match=r"tests\.helpers\.gpu\.kernels imports paddle before FLAGS_selected_gpus is set"
    ):
        run_ranks(network, 1, device="gpu", quiet=True)
