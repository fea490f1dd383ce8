"""Loss spikes: what is one, how it is marked or skipped, and that the monitor survives a resume."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from paddle_llm.training.metrics.spikes import THRESHOLD, WINDOW, SpikeMonitor
from tests.helpers.pretrain_jobs import config, make_trainer, numbers, rows, weights
from tests.training.test_metrics_page import keys_of_page


def monitor(number: int, start: float = 2.0) -> SpikeMonitor:
    """Return a monitor that has seen losses around `start` with a standard deviation of 0.1."""
    found = SpikeMonitor()
    for index in range(number):
        assert found.add(start + (0.1 if index % 2 else -0.1)) is None
    return found


def test_a_loss_is_compared_with_mean_and_deviation_of_the_last_128():
    found = monitor(WINDOW, start=50.0)
    for index in range(WINDOW):
        found.add(2.0 + (0.1 if index % 2 else -0.1))  # the losses around 50 are forgotten
    assert len(found.losses) == WINDOW
    assert found.deviations(2.0 + 0.59) == pytest.approx(5.9) and not found.is_spike(2.0 + 0.59)
    assert found.is_spike(2.0 + 0.61) and not found.is_spike(2.0 - 5.0)  # a fall of the loss is not a spike
    assert found.add(2.0 + 0.61) == pytest.approx(6.1) and found.count == 1
    assert found.losses[-1] == 2.61


@pytest.mark.parametrize("loss", [2.0, 1 / 3, 0.0])
@pytest.mark.parametrize("number", [64, 100, WINDOW])
def test_after_equal_losses_a_larger_one_is_a_spike_and_a_rounding_difference_is_not(loss, number):
    constant = SpikeMonitor()
    for _ in range(number):
        assert constant.add(loss) is None
    assert not constant.is_spike(float(np.nextafter(np.float32(loss), np.float32(9)))) and not constant.is_spike(0.0)
    found = constant.add(loss + 0.01)
    assert found is not None and found > THRESHOLD and math.isfinite(found)  # metrics.jsonl gets it


def test_few_losses_and_losses_that_are_not_finite_give_no_spike():
    assert not monitor(63).is_spike(100.0) and monitor(64).is_spike(100.0)
    found = monitor(100)
    for loss in (math.nan, math.inf):
        assert found.add(loss) is None
    assert len(found.losses) == 100 and found.count == 0


def test_the_state_survives_json_bit_for_bit():
    found = monitor(100)
    found.add(1 / 3)
    found.add(100.0)
    restored = SpikeMonitor()
    restored.restore(json.loads(json.dumps(found.state())))
    assert restored == found and restored.losses.maxlen == WINDOW


SPIKE = 71


def _trainer(folder, **changes):
    """Return a trainer whose loss is 1000 times as large in step 71 of 74, with a checkpoint at step 70."""
    changes = {"save_steps": 35, "do_eval": False, "logging_steps": 1, "gradient_accumulation_steps": 1} | changes
    trainer = make_trainer(config(folder, max_steps=74, learning_rate=1e-4, **changes))

    def enlarge(layer, inputs, output):
        return output * 1000.0 if trainer.state.global_step == SPIKE - 1 else output

    trainer.model.criterion.register_forward_post_hook(enlarge)
    return trainer


@pytest.fixture(scope="module")
def marked(tmp_path_factory):
    folder = tmp_path_factory.mktemp("marked")
    trainer = _trainer(folder)
    trainer.train()
    return folder / "output", weights(trainer.model)


def test_a_spike_is_marked(marked):
    events = [row for row in rows(marked[0]) if "spike_loss" in row]
    training = {row["step"]: row for row in rows(marked[0]) if "loss" in row}
    assert [row["step"] for row in events] == [SPIKE]
    assert set(events[0]) == {key for key in keys_of_page()["Event rows"] if "rollback" not in key}
    assert (
        events[0]["spike_loss"] == pytest.approx(training[SPIKE]["loss"]) and events[0]["spike_deviations"] > THRESHOLD
    )
    assert [training[step]["loss_spikes"] for step in (SPIKE - 1, SPIKE, 74)] == [0, 1, 1]
    assert training[74]["skipped_steps"] == 0


def test_the_monitor_survives_a_resume(marked, tmp_path):
    """Step 71 is the first one after the checkpoint: without the 70 losses before it, there would be no spike."""
    _trainer(tmp_path).train()
    resumed = _trainer(tmp_path)
    resumed.train(str(tmp_path / "output" / "checkpoint-70"))
    assert numbers(tmp_path / "output") == numbers(marked[0])
    assert all(np.array_equal(marked[1][name], value) for name, value in weights(resumed.model).items())


def test_a_spike_can_be_skipped(tmp_path, capsys):
    trainer = _trainer(tmp_path, nan_policy="stop", spike_policy="skip")
    compared: dict = {}
    trainer.add_callback(_compare_weights(trainer, compared))
    trainer.train()
    last = [row for row in rows(tmp_path / "output") if "loss" in row][-1]
    assert last["skipped_steps"] == 1 and last["loss_spikes"] == 1
    assert compared["equal"]
    assert "is a spike" in capsys.readouterr().err


def _compare_weights(trainer, found: dict):
    """Return a callback that compares the weights before and after the step of the spike."""
    from paddlenlp.trainer import TrainerCallback

    class Compare(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == SPIKE - 1:
                found["before"] = weights(trainer.model)

        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == SPIKE:
                after = weights(trainer.model)
                found["equal"] = all(np.array_equal(found["before"][name], value) for name, value in after.items())

    return Compare()
