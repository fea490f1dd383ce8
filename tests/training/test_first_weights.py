"""What a training says of the weights that it starts from."""

from __future__ import annotations

from paddle_llm.training.run import _say_first_weights
from tests.helpers.pretrain_jobs import config


def test_weights_that_are_left_aside_are_told(tmp_path, capsys, monkeypatch):
    def told(**changes) -> str:
        _say_first_weights(run.model_copy(update=changes))
        return capsys.readouterr().err

    run = config(tmp_path)
    assert told() == ""  # a config.json alone: nobody expects anything but random weights
    (tmp_path / "llama" / "model.safetensors").touch()
    assert told() == (
        f"{tmp_path / 'llama'} holds weights; training starts from random ones (--continue_training 1 starts from them)\n"
    )
    assert told(continue_training=True) == f"training starts from the weights of {tmp_path / 'llama'}\n"
    monkeypatch.setenv("PADDLE_TRAINER_ID", "1")
    assert told() == ""
