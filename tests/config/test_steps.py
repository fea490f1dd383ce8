"""Warm-up, schedule and intervals compared with the length of a training, in steps or epochs."""

from __future__ import annotations

import pytest

from paddle_llm.config.run_config import RunConfig
from paddle_llm.config.steps import report_counted_steps, schedule_of, warmup_of, warmup_problems


def config(**fields: object) -> RunConfig:
    return RunConfig(**{"learning_rate": 1e-3, "min_learning_rate": 1e-4, **fields})


@pytest.mark.parametrize(
    ("fields", "steps", "problem"),
    [
        ({"warmup_steps": 10}, 10, "warmup_steps = 10 is not shorter"),
        ({"warmup_steps": 9}, 10, None),
        ({"warmup_ratio": 1.0}, 10, "warmup_ratio = 1 (10 steps) is not shorter"),
        ({"warmup_ratio": 0.5}, 10, None),
        ({"warmup_ratio": 0.5, "decay_steps": 5}, 10, "which ends at step 5"),
        ({"warmup_steps": 5, "decay_steps": 5}, None, "which ends at step 5"),
        ({"warmup_steps": 5}, None, None),
        ({"warmup_steps": 11, "lr_scheduler_type": "constant_with_warmup"}, 10, "warmup_steps = 11"),
        ({"warmup_steps": 10, "lr_scheduler_type": "constant_with_warmup"}, 10, None),
        ({"warmup_steps": 11, "lr_scheduler_type": "constant"}, 10, None),
    ],
)
def test_a_warmup_must_end_before_the_schedule(fields, steps, problem):
    found = list(warmup_problems(config(**fields), steps))
    assert (problem is None and not found) or problem in found[0]


def test_epochs_are_checked_as_steps_are():
    reported: list[str] = []
    origins = {"warmup_ratio": "flag", "save_steps": "default"}
    run = config(num_train_epochs=2, warmup_ratio=0.01, save_steps=50, logging_steps=20, decay_steps=40)
    report_counted_steps(run, 10, origins, reported.append)
    assert reported == [
        "warmup_ratio = 0.01 of 10 steps is less than one step: the run has no warm-up.",
        "decay_steps = 40 is more than the 10 steps of num_train_epochs = 2: the learning rate does not reach min_learning_rate in this run.",
        "save_steps = 50 is more than the 10 steps of num_train_epochs = 2: no checkpoint is written before the last step.",
        "logging_steps = 20 is more than the 10 steps of num_train_epochs = 2: no loss is logged before the last step.",
    ]
    reported.clear()
    report_counted_steps(config(warmup_steps=1000), 10, origins, reported.append)
    assert reported[0].startswith(
        "warning: warmup_steps = 1000 is not shorter than the learning-rate schedule, which ends at step 10"
    )
    assert reported[0].endswith("a longer training. With this data, num_train_epochs = 1 means 10 steps.")
    reported.clear()
    report_counted_steps(config(warmup_steps=1000, max_steps=10), 10, origins, reported.append)
    assert reported == []


def test_a_schedule_contains_only_what_determines_the_learning_rate():
    assert warmup_of(config(warmup_steps=3, warmup_ratio=0.5), 10) == 3
    assert schedule_of(config(lr_scheduler_type="constant"), 10) == schedule_of(
        config(lr_scheduler_type="constant", warmup_steps=3), 99
    )
    assert schedule_of(config(decay_steps=5), 10) == schedule_of(config(decay_steps=5), 99)
    assert schedule_of(config(), 10) != schedule_of(config(), 11)
    assert schedule_of(config(warmup_ratio=0.2), 10) == schedule_of(config(warmup_steps=2), 10)
