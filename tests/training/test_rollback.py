"""`--nan_policy rollback`: the run ends as if the step had been skipped; its records survive a restart; its limit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from paddle_llm.config.layout import Layout
from paddle_llm.core.artifacts import ROLLBACKS
from paddle_llm.core.errors import TrainingStopped
from paddle_llm.rehearse.ranks import run_ranks
from tests.helpers.pretrain_jobs import config, make_trainer, numbers, rows, weights, whole_weights
from tests.training.test_metrics_page import keys_of_page

SETTINGS = {"do_eval": False, "logging_steps": 1, "save_steps": 2, "max_steps": 8}


def _builder(folder: Path, layout: Layout | None, bad_steps: tuple[int, ...], **changes):
    """Return a function that builds a trainer whose activations overflow in some steps, on the last rank only."""

    def build(start=None):
        trainer = make_trainer(config(folder, **(SETTINGS | changes)), layout)
        last = trainer.args.process_index == trainer.args.world_size - 1

        def overflow(layer, inputs, output):
            is_bad = trainer.state.global_step + 1 in bad_steps and last and layer.training
            return output * float("nan") if is_bad else output

        linear = [layer for layer in trainer.model.sublayers() if type(layer).__name__.endswith("Linear")]
        linear[0].register_forward_post_hook(overflow)
        return trainer

    return build


def _train(folder: Path, layout: Layout | None, bad_steps: tuple[int, ...], start: Path | None = None, **changes):
    """Train with rollbacks and return the trainer at the end."""
    from paddle_llm.training.rollback import train_with_rollbacks

    build = _builder(folder, layout, bad_steps, **changes)
    return train_with_rollbacks(build, start, [build()])


def without_rollbacks(folder: Path) -> list[tuple]:
    return [row for row in numbers(folder / "output") if "rollback_to_step" not in dict(row)]


@pytest.fixture(scope="module")
def skipped(tmp_path_factory):
    """The rows and weights of a run that skips the updates of steps 1 and 6."""
    folder = tmp_path_factory.mktemp("skipped")
    trainer = _train(folder, None, (1, 6), nan_policy="skip")
    return numbers(folder / "output"), weights(trainer.model)


def test_the_result_is_that_of_a_run_that_skips_the_step(skipped, tmp_path, capsys):
    """Step 1 is before the first checkpoint, so the training starts again; step 6 is after checkpoint-4."""
    trainer = _train(tmp_path, None, (1, 6), nan_policy="rollback")
    assert without_rollbacks(tmp_path) == skipped[0]
    assert all(np.array_equal(skipped[1][name], value) for name, value in weights(trainer.model).items())
    events = [row for row in rows(tmp_path / "output") if "rollback_to_step" in row]
    assert [(row["step"], row["rollback_to_step"], row["rollbacks"]) for row in events] == [(1, 0, 1), (6, 4, 2)]
    assert set(events[0]) == {key for key in keys_of_page()["Event rows"] if "spike" not in key}
    recorded = json.loads((tmp_path / "output" / ROLLBACKS).read_text())["rollbacks"]
    assert [(one["step"], one["first_sample"], one["last_sample"]) for one in recorded] == [(1, 0, 1), (6, 10, 11)]
    printed = capsys.readouterr().err
    assert "Rollback 1 of at most 3: the training continues from the first step and skips these samples" in printed
    assert f"Rollback 2 of at most 3: the training continues from checkpoint {tmp_path}/output/checkpoint-4" in printed
    assert "toy sample 10" in printed


def _damaging(build, folders: list[Path]):
    """Return a function like `build` whose first trainer changes a byte of the tensors of checkpoints in step 6."""
    remaining = list(folders)

    def build_damaging(start=None):
        trainer = build(start)
        original = trainer.training_step

        def training_step(*args, **kwargs):
            while trainer.state.global_step == 5 and remaining:
                (file,) = remaining.pop().glob("*.safetensors")
                content = bytearray(file.read_bytes())
                content[-8] ^= 1  # only the digest shows it
                file.write_bytes(content)
            return original(*args, **kwargs)

        trainer.training_step = training_step
        return trainer

    return build_damaging


@pytest.mark.parametrize(("damaged", "back_to"), [((4,), 2), ((2, 4), 0)])
def test_a_damaged_checkpoint_is_passed_over(damaged, back_to, skipped, tmp_path, capsys):
    from paddle_llm.training.rollback import train_with_rollbacks

    folders = [tmp_path / "output" / f"checkpoint-{step}" for step in damaged]
    build = _damaging(_builder(tmp_path, None, (1, 6), nan_policy="rollback"), folders)
    trainer = train_with_rollbacks(build, None, [build()])
    assert without_rollbacks(tmp_path) == skipped[0]
    assert all(np.array_equal(skipped[1][name], value) for name, value in weights(trainer.model).items())
    events = [row["rollback_to_step"] for row in rows(tmp_path / "output") if "rollback_to_step" in row]
    assert events[-1] == back_to
    printed = capsys.readouterr().err
    for folder in folders:
        assert f"skipped checkpoint {folder}: rank-00000.safetensors has the digest" in printed


def test_a_rollback_to_a_damaged_checkpoint_of_another_folder_stops(tmp_path):
    """The training in this folder has no first step."""
    from paddle_llm.training.rollback import train_with_rollbacks

    for name in ("before", "run"):
        (tmp_path / name).mkdir()
    _train(tmp_path / "before", None, (), max_steps=4)
    start = tmp_path / "before" / "output" / "checkpoint-4"
    build = _damaging(_builder(tmp_path / "run", None, (6,), nan_policy="rollback"), [start])
    with pytest.raises(TrainingStopped, match=r"step 6.*checkpoint-4: rank-00000.safetensors has the digest"):
        train_with_rollbacks(build, start, [build(start)])


def test_after_the_last_rollback_the_training_stops(tmp_path):
    with pytest.raises(
        TrainingStopped, match=r"step 6.*The training was rolled back 2 times already \(--max_rollbacks\)"
    ):
        _train(tmp_path, None, (3, 5, 6), nan_policy="rollback", max_rollbacks=2)
    events = [row["step"] for row in rows(tmp_path / "output") if "rollback_to_step" in row]
    assert events == [3, 5]


def test_the_record_survives_a_restart(skipped, tmp_path):
    """Resumed from an older checkpoint, the samples are skipped without another rollback."""
    _train(tmp_path, None, (1, 6), nan_policy="rollback")
    start = tmp_path / "output" / "checkpoint-2"
    trainer = _train(tmp_path, None, (1, 6), start, nan_policy="rollback", max_rollbacks=2)
    assert len(json.loads((tmp_path / "output" / ROLLBACKS).read_text())["rollbacks"]) == 2
    assert without_rollbacks(tmp_path) == skipped[0]
    assert all(np.array_equal(skipped[1][name], value) for name, value in weights(trainer.model).items())


def _both(folder: Path, layout: Layout) -> bool:
    """Train on this rank with both policies; return whether the weights are equal."""
    from paddle_llm.parallel.process.start import start_process

    start_process("cpu", layout.world_size)
    found = []
    for policy in ("skip", "rollback"):
        trainer = _train(folder / policy, layout, (6,), nan_policy=policy)
        found.append(whole_weights(trainer))
    return all(np.array_equal(found[0][name], value) for name, value in found[1].items())


@pytest.mark.parametrize(
    "layout",
    [
        Layout(sharding=2, sharding_stage=2),
        Layout(pipeline=2),
        pytest.param(Layout(data=2), marks=pytest.mark.slow),
        pytest.param(Layout(tensor=2), marks=pytest.mark.slow),
        pytest.param(Layout(sharding=2, sharding_stage=3), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_all_ranks_go_back_if_one_is_not_finite(layout, tmp_path):
    for policy in ("skip", "rollback"):
        (tmp_path / policy).mkdir()
        config(tmp_path / policy)
    assert run_ranks(_both, 2, tmp_path, layout) == [True, True]
    assert without_rollbacks(tmp_path / "rollback") == numbers(tmp_path / "skip" / "output")
    events = [row for row in rows(tmp_path / "rollback" / "output") if "rollback_to_step" in row]
    assert [(row["step"], row["rollback_to_step"]) for row in events] == [(6, 4)]
