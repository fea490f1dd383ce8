"""Ranks write the rows of one process, resume exactly, and evaluate an untrained model.

tests/rehearse/test_matrix.py compares every kind of layout with one process.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from paddle_llm.config.layout import Layout
from paddle_llm.rehearse.ranks import run_ranks
from tests.helpers.pretrain_jobs import Toy, config, make_trainer, numbers, rows

STEPS = {
    "max_steps": 6,
    "logging_steps": 1,
    "eval_steps": 3,
    "save_steps": 3,
    "learning_rate": 1e-3,
    "adam_epsilon": 1e-4,
}


def _train(folder: Path, layout: Layout, changes: dict, resume: str | None = None) -> int:
    """Run one rank of a short run in `folder`/output."""
    from paddle_llm.parallel.process.start import start_process

    start_process("cpu", layout.world_size)
    trainer = make_trainer(config(folder, **(STEPS | changes)), layout)
    trainer.train(resume)
    return trainer.state.global_step


def _run(folder: Path, layout: Layout, changes: dict | None = None, resume: str | None = None) -> list[dict]:
    config(folder)  # the model folder is written once, before ranks look for it
    run_ranks(_train, layout.world_size, folder, layout, changes or {}, resume)
    return rows(folder / "output")


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    """Return the rows of one process with the same global batch of 8."""
    return _run(tmp_path_factory.mktemp("one"), Layout(), {"gradient_accumulation_steps": 8})


@pytest.mark.parametrize("layout", [Layout(data=2), Layout(sharding=2, sharding_stage=2, pipeline=2)], ids=str)
def test_rows_of_a_layout_equal_those_of_one_process(layout, tmp_path, one_process):
    accumulation = 8 // layout.data_world_size
    changes = {"gradient_accumulation_steps": accumulation, "sequence_parallel": layout.sequence_parallel}
    found = _run(tmp_path, layout, changes)
    expected = [row for row in one_process if "loss" in row]
    train = [row for row in found if "loss" in row]
    assert [row["step"] for row in train] == [1, 2, 3, 4, 5, 6]
    for key, limit in (("loss", 2e-6), ("grad_norm", 2e-5)):
        np.testing.assert_allclose([r[key] for r in train], [r[key] for r in expected], rtol=limit, err_msg=key)
    assert [r["consumed_tokens"] for r in train] == [r["consumed_tokens"] for r in expected]
    evaluation = [row["eval_loss"] for row in found if "eval_loss" in row]
    np.testing.assert_allclose(evaluation, [r["eval_loss"] for r in one_process if "eval_loss" in r], rtol=2e-6)


@pytest.mark.parametrize("layout", [Layout(sharding=2, sharding_stage=1), Layout(tensor=2, pipeline=2)], ids=str)
def test_resume_on_the_same_layout_is_exact_bit_for_bit(layout, tmp_path):
    changes = {"logging_steps": 2, "gradient_accumulation_steps": 4}
    _run(tmp_path, layout, changes)
    expected = numbers(tmp_path / "output")
    _run(tmp_path, layout, changes, resume=str(tmp_path / "output" / "checkpoint-3"))
    assert numbers(tmp_path / "output") == expected


def _evaluate(folder: Path, layout: Layout, samples: int, changes: dict) -> float:
    """Return the evaluation loss of the untrained model on one rank."""
    from paddle_llm.parallel.process.start import start_process

    start_process("cpu", layout.world_size)
    return make_trainer(config(folder, **changes), layout, evaluation=Toy(samples)).evaluate()["eval_loss"]


def test_a_pipeline_evaluates_a_last_batch_that_is_not_full(tmp_path):
    """11 samples are evaluated in batches of 8 and micro-batches of 2. Padding does not count."""
    config(tmp_path)
    (alone,) = run_ranks(_evaluate, 1, tmp_path, Layout(), 11, {})
    changes = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    for found in run_ranks(_evaluate, 2, tmp_path, Layout(pipeline=2), 11, changes):
        assert found == pytest.approx(alone, rel=1e-6)


def _sharding_config(folder: Path, layout: Layout, changes: dict) -> str:
    """Return PaddleNLP's `sharding_parallel_config` on one rank."""
    from paddle_llm.parallel.process.start import start_process
    from paddle_llm.training.arguments import training_arguments

    start_process("cpu", layout.world_size)
    return training_arguments(config(folder, **changes), layout).sharding_parallel_config


def test_switches_of_other_stages_are_not_passed_to_paddlenlp(tmp_path):
    """PaddleNLP gets stage 1 for our stage 2, and would use or reject the switches of stage 2. The reader drops them only on a CPU."""
    config(tmp_path)
    layout = Layout(sharding=2, sharding_stage=2)
    changes = {"sharding_parallel_config": "enable_stage2_overlap split_param enable_release_grads"}
    assert run_ranks(_sharding_config, 2, tmp_path, layout, changes) == ["enable_release_grads"] * 2
