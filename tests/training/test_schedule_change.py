"""A training that is resumed with another schedule uses it from its first step on; the reported rates are those of the steps."""

from __future__ import annotations

import pytest

from paddle_llm.config.steps import learning_rate_at, schedule_of
from tests.helpers.pretrain_jobs import config, make_trainer, rows


def rates(folder) -> dict[int, float]:
    return {row["step"]: row["learning_rate"] for row in rows(folder / "output") if "learning_rate" in row}


@pytest.mark.parametrize("kind", ["cosine", "polynomial"])
def test_the_first_step_after_a_change_uses_the_new_schedule(kind, tmp_path):
    """Ten steps instead of six, from the checkpoint of step 3; the warm-up of 40% follows the length."""
    changes = {"do_eval": False, "logging_steps": 1, "save_steps": 3, "warmup_ratio": 0.4, "lr_scheduler_type": kind}
    changes |= {"min_learning_rate": 1e-3, "lr_end": 1e-4}
    found = {}
    for steps in (6, 10):
        (tmp_path / str(steps)).mkdir()
        run = config(tmp_path / str(steps), max_steps=steps, **changes)
        make_trainer(run).train()
        found[steps] = rates(tmp_path / str(steps))
        expected = {step: learning_rate_at(schedule_of(run, steps), step - 1) for step in range(1, steps + 1)}
        assert found[steps] == pytest.approx(expected)
    longer = config(tmp_path / "6", max_steps=10, **changes)
    make_trainer(longer).train(str(tmp_path / "6" / "output" / "checkpoint-3"))
    resumed = rates(tmp_path / "6")
    assert found[6][4] != pytest.approx(found[10][4])
    assert resumed == {
        **{step: found[6][step] for step in (1, 2, 3)},
        **{step: found[10][step] for step in range(4, 11)},
    }
