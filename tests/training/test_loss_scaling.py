"""fp16's loss scaler: overflows lower its scale, skipped steps are counted, fp32 gradients (amp_master_grad) are unscaled.

Paddle scales losses on a GPU only. Here its predicate is replaced and the model stays in fp32.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import paddle
import pytest

from paddle_llm.core.errors import TrainingStopped
from tests.helpers.pretrain_jobs import config, make_poisoned_trainer, make_trainer, rows, weights


def _with_loss_scaler(trainer, monkeypatch, scale: float, main_gradients: bool = False) -> None:
    """Give a trainer the scaler that it makes for fp16 on a GPU."""
    place = SimpleNamespace(is_gpu_place=lambda: True)
    args = trainer.args
    args.fp16, args.scale_loss, args.amp_master_grad = True, scale, main_gradients
    with monkeypatch.context() as patch:
        patch.setattr(paddle.amp.grad_scaler, "_dygraph_tracer", lambda: SimpleNamespace(_expected_place=place))
        trainer._wrap_amp_model(args, trainer.model)
    trainer.enable_autocast_context_manager = False  # a CPU computes nothing in 16 bits
    trainer.scaler._decr_every_n_nan_or_inf, trainer.scaler._decr_ratio = 1, 1e-15


def _overflows_above(trainer, factor: float = 1e20) -> None:
    """Multiply the gradient that reaches the embeddings by `factor`."""

    def enlarge(layer, inputs, output):
        return output * (1 / factor) * factor

    trainer.model.llama.embed_tokens.register_forward_post_hook(enlarge)


@pytest.mark.parametrize("main_gradients", [False, True])
def test_an_overflow_lowers_the_scale_and_counts_as_a_skipped_step(tmp_path, monkeypatch, capsys, main_gradients):
    trainer = make_trainer(config(tmp_path, max_steps=6, logging_steps=1, do_eval=False))
    _overflows_above(trainer)
    _with_loss_scaler(trainer, monkeypatch, 1e30, main_gradients)
    before = weights(trainer.model)
    trainer.train()
    assert "gradients overflow fp16; no update" in capsys.readouterr().err
    found = rows(tmp_path / "output")
    assert [row["skipped_steps"] for row in found] == [1] * 6
    assert [row["grad_norm"] is None for row in found] == [row["loss"] is None for row in found] == [True] + [False] * 5
    assert found[-1]["consumed_tokens"] == 5 * 32  # 2 samples of 16 tokens in each of the steps that were taken
    assert any(not np.array_equal(before[name], value) for name, value in weights(trainer.model).items())


@pytest.mark.parametrize("main_gradients", [False, True])
def test_the_scale_is_taken_out_of_the_gradients(tmp_path, monkeypatch, main_gradients):
    settings = {"max_steps": 4, "logging_steps": 1, "do_eval": False}
    make_trainer(config(tmp_path, **settings)).train()
    expected = rows(tmp_path / "output")
    scaled = make_trainer(config(tmp_path, **settings, output_dir=str(tmp_path / "scaled")))
    _with_loss_scaler(scaled, monkeypatch, 32768.0, main_gradients)
    scaled.train()
    for row, other in zip(expected, rows(tmp_path / "scaled"), strict=True):  # a power of two changes no digit
        assert (row["loss"], row["grad_norm"]) == (other["loss"], other["grad_norm"])


def test_a_resumed_training_continues_with_its_scale(tmp_path, monkeypatch):
    settings = {"max_steps": 6, "logging_steps": 1, "save_steps": 3, "do_eval": False}
    found = {}
    for name in ("whole", "resumed"):
        trainer = make_trainer(config(tmp_path, **settings, output_dir=str(tmp_path / name)))
        _overflows_above(trainer)
        _with_loss_scaler(trainer, monkeypatch, 1e30)
        trainer.train(tmp_path / "whole" / "checkpoint-3" if name == "resumed" else None)
        found[name] = trainer.scaler.state_dict(), weights(trainer.model), rows(tmp_path / name)[-3:]
    (scaler, values, numbers), (again, same, repeated) = found.values()
    assert again == scaler and scaler["scale"] == np.float32(1e30) * np.float32(1e-15)
    assert all(np.array_equal(value, same[name]) for name, value in values.items())
    assert [(r["loss"], r["grad_norm"], r["skipped_steps"]) for r in numbers] == [
        (r["loss"], r["grad_norm"], r["skipped_steps"]) for r in repeated
    ]


def test_a_loss_that_is_nan_stops_the_job_under_a_loss_scaler_too(tmp_path, monkeypatch):
    trainer = make_poisoned_trainer(config(tmp_path, do_eval=False))
    _with_loss_scaler(trainer, monkeypatch, 1024.0)
    with pytest.raises(TrainingStopped, match="the loss is not finite on rank 0 at step 4"):
        trainer.train()
