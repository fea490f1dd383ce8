"""A training of PaddleNLP that continues here from a converted checkpoint, on the same and on other layouts."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from paddle_llm.config.layout import Layout
from paddle_llm.rehearse.ranks import run_ranks
from tests.checkpoint.convert.paddlenlp_runs import SAVED, STEPS, train
from tests.checkpoint.convert.test_convert import CHECKPOINT, command
from tests.checkpoint.layout_runs import Part, different_tensors, losses, run_part
from tests.helpers.models.tiny import write_llama
from tests.helpers.pretrain_jobs import VOCABULARY

SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
SETTINGS = {
    "learning_rate": 1e-2,
    "lr_scheduler_type": "constant",
    "max_steps": STEPS,
    "adam_epsilon": 1e-8,
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "warmup_steps": 0,
}


OLD = (
    Path(__file__).parents[2] / "fixtures/version_0_2/training"
)  # a BLOOM with a padded vocabulary, on tp2 x sharding2


@pytest.fixture(scope="module")
def converted(tmp_path_factory) -> tuple[Path, list[float]]:
    """A converted checkpoint of two sharding ranks of PaddleNLP, and the losses of the training without interruption."""
    folder = tmp_path_factory.mktemp("paddlenlp")
    layout = {"sharding": 2, "sharding_stage": 1}
    found = run_ranks(train, 2, str(folder), layout, {}, ["sharding-io"], None, "constant")[0][0]
    command(folder / "sharding-io" / CHECKPOINT, folder / CHECKPOINT, "--allow_pickle")
    return folder / CHECKPOINT, found


@pytest.mark.parametrize(
    "layout", [Layout(sharding=2, sharding_stage=1), Layout(), Layout(tensor=2, pipeline=2)], ids=str
)
def test_training_continues_on_any_layout(layout, converted, tmp_path):
    start, wanted = converted
    write_llama(tmp_path / "llama", **SHAPE)
    run_part(tmp_path, Part(layout, STEPS, start, tuple(SETTINGS.items())))
    assert different_tensors(start, tmp_path / "loaded" / CHECKPOINT) == []
    found = losses(tmp_path)
    assert list(found) == list(range(SAVED + 1, STEPS + 1))
    np.testing.assert_allclose(list(found.values()), wanted[SAVED:STEPS], rtol=1e-5)


def test_a_checkpoint_of_version_0_2_continues_on_another_layout(tmp_path):
    shutil.copytree(OLD / "bloom", tmp_path / "bloom")
    done = command(OLD / "output" / CHECKPOINT, tmp_path / CHECKPOINT, "--allow_pickle")
    assert "from a checkpoint of paddle_llm 0.2 or earlier" in done.stdout
    assert "random_states_*.pdstate (4 files) is not converted" in done.stderr
    layout, changes = Layout(), {"model_name_or_path": str(tmp_path / "bloom"), "max_steps": STEPS}
    run_part(tmp_path, Part(layout, STEPS, tmp_path / CHECKPOINT, tuple(changes.items())))
    assert different_tensors(tmp_path / CHECKPOINT, tmp_path / "loaded" / CHECKPOINT) == []
    assert list(losses(tmp_path)) == [SAVED + 1, STEPS]
