"""Resuming on a GPU: bit for bit, with dropout, in 16 bits, with a loss scaler, on another card."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.gpu.on_ranks import Trained
from tests.gpu.trainings import BF16, FP16, case_on, train

DROPOUT = {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.2}


def whole_and_resumed(device: str, folder: Path, card: int | None = None, **settings) -> tuple[Trained, Trained]:
    """Train four steps, then repeat the last two from a checkpoint, on another GPU if `card` is given."""
    case = case_on(device, folder, family="bloom", evaluation=0, global_batch=4, max_steps=4)
    settings = {**DROPOUT, "save_strategy": "steps", "save_steps": 2, **settings}
    output = folder / "output"
    (whole,) = train(case, output, **settings)
    (rest,) = train(case, output, output / "checkpoint-2", card=card, **settings)
    return whole, rest


def assert_continued(whole: Trained, rest: Trained) -> None:
    assert rest.losses == whole.losses[2:] and rest.norms == whole.norms[2:]
    assert (rest.scale, rest.skipped) == (whole.scale, whole.skipped) and whole.skipped < len(whole.losses)
    assert whole.weights.keys() == rest.weights.keys() and whole.weights
    for name, value in whole.weights.items():
        assert np.array_equal(rest.weights[name], value), name


@pytest.mark.parametrize(
    "precision",
    [pytest.param({}, marks=pytest.mark.slow), pytest.param(BF16, marks=pytest.mark.slow), FP16],
    ids=["32 bits", "bf16", "fp16"],
)
def test_a_resumed_training_equals_an_uninterrupted_one(tmp_path: Path, device: str, precision: dict) -> None:
    """The loss scaler's first scale overflows, so that its state matters."""
    assert_continued(
        *whole_and_resumed(device, tmp_path, **precision, **({"scale_loss": 2.0**20} if precision == FP16 else {}))
    )


@pytest.mark.slow
@pytest.mark.gpus(2)
def test_another_gpu_draws_the_values_of_the_first(tmp_path: Path, device: str) -> None:
    whole, rest = whole_and_resumed(device, tmp_path, card=1)
    assert_continued(whole, rest)
    assert (whole.device, rest.device) == (("gpu:0", "gpu:1") if device == "gpu" else ("cpu", "cpu"))
