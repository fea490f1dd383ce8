"""The report on the weights that a training starts from."""

from __future__ import annotations

from paddle_llm.training.run import _report_first_weights
from tests.helpers.pretrain_jobs import config


def test_random_weights_are_reported_where_the_folder_holds_others(tmp_path, capsys):
    def report(**changes) -> str:
        _report_first_weights(run.model_copy(update=changes))
        return capsys.readouterr().err

    run = config(tmp_path)
    assert report() == ""  # only a config.json: random weights are expected
    (tmp_path / "llama" / "model.safetensors").touch()
    assert report() == (
        f"training starts from random weights; --continue_training 1 starts from those of {tmp_path / 'llama'}\n"
    )
    assert report(continue_training=True) == f"training starts from the weights of {tmp_path / 'llama'}\n"
    (tmp_path / "config.resolved.json").touch()  # the folder was written by a run
    assert "with a new schedule and the first samples: its run is not resumed" in report(continue_training=True)
