"""Settings of a checkpoint: which may change when a training resumes, and which are rejected."""

from __future__ import annotations

import json

import pytest

from paddle_llm.checkpoint.identity import RunIdentity, check_identity
from paddle_llm.checkpoint.settings import (
    CHECKED_ELSEWHERE,
    COMPARED_BY_CONTENT,
    COMPARED_BY_LEARNING_RATE,
    WITHOUT_EFFECT,
    changed_data_settings,
    check_length,
    check_settings,
    compared_fields,
    record_of,
)
from paddle_llm.config.reader import Resolved, resolve
from paddle_llm.config.run_config import FIELD_NAMES
from paddle_llm.core.errors import UserError
from paddle_llm.data.identity import DataIdentity
from tests.helpers.checkpoints import write_checkpoint, write_old_manifest
from tests.helpers.models.tiny import write_llama

_STEPS = 16


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_llama(tmp_path_factory.mktemp("settings") / "m")


def run(model, *flags: str, entry: str = "finetune") -> Resolved:
    given = ["--model_name_or_path", str(model), "--output_dir", "o", "--do_train", "--report_to", "none"]
    own = ["--dataset_name_or_path", "x.jsonl", "--max_length", "64"]
    return resolve([*given, *(own if entry == "finetune" else ["--input_dir", "c", "--max_seq_length", "64"]), *flags],
                   world_size=1, entry=entry, device="cpu")  # fmt: skip


@pytest.fixture(scope="module")
def start(model, tmp_path_factory):
    """A checkpoint of `run(model)`, trained for 16 steps."""
    folder = tmp_path_factory.mktemp("run") / "checkpoint-16"
    settings = json.loads(json.dumps(record_of(run(model), _STEPS)))
    write_checkpoint(folder, 16, settings=settings)
    return folder


def test_every_listed_field_exists_and_is_on_one_list():
    lists = (WITHOUT_EFFECT, COMPARED_BY_CONTENT, CHECKED_ELSEWHERE, COMPARED_BY_LEARNING_RATE)
    assert set().union(*lists) - set(FIELD_NAMES) <= {"model_format"}
    shared = [name for name in FIELD_NAMES if sum(name in one for one in lists) > 1]
    assert set(shared) <= {"lora_path", "prefix_path", "merge_weights"}
    for name in ("seed", "weight_decay", "loss_on", "max_length", "zero_padding", "label_smoothing", "max_grad_norm"):
        assert name in compared_fields("finetune")


@pytest.mark.parametrize(
    ("flags", "changed"),
    [
        (("--seed", "7"), "seed 42 -> 7; data_seed 42 -> 7"),
        (("--loss_on", "all"), "loss_on answers -> all"),
        (("--weight_decay", "0.1"), "weight_decay 0.01 -> 0.1"),
        (("--max_length", "32"), "max_length 64 -> 32"),
        (("--zero_padding",), "zero_padding False -> True"),
        (("--label_smoothing", "0.1"), "label_smoothing 0.0 -> 0.1"),
    ],
)
def test_a_changed_setting_is_refused_with_both_values_and_can_be_allowed(model, start, flags, changed):
    with pytest.raises(UserError) as refused:
        check_settings(start, run(model, *flags))
    message = str(refused.value)
    assert all(part in message for part in changed.split("; "))
    assert "Use the same values, continue with the new ones (--resume_with_changed_settings 1), or start" in message
    (line,) = check_settings(start, run(model, *flags, "--resume_with_changed_settings"))
    assert changed.split("; ")[0] in line and "continues with the new ones" in line


@pytest.mark.parametrize(
    "flags",
    [
        (),
        ("--save_steps", "3", "--logging_steps", "1"),
        ("--output_dir", "elsewhere"),
        ("--recompute", "--dataloader_num_workers", "2"),
        ("--dataset_name_or_path", "moved.jsonl"),  # the rows themselves are compared
        ("--num_train_epochs", "7"),  # compared as steps
        ("--pad_to_max_length", "1"),  # a pipeline pads so, other layouts do not
    ],
)
def test_what_does_not_change_the_training_may_change(model, start, flags):
    assert check_settings(start, run(model, *flags)) == []


def test_another_length_is_refused_where_it_changes_the_learning_rate(model, start):
    """Step 17 is after the end of the old schedule (a tenth of the peak) and in the middle of the new one."""
    assert check_length(start, run(model), _STEPS) == []
    with pytest.raises(UserError) as refused:
        check_length(start, run(model), 48)
    assert (
        "different settings: training steps 16 -> 48; warmup_steps 0 -> 1; learning rate of step 17 2e-06 -> 1.58e-05."
        in str(refused.value)
    )
    assert "learning-rate schedule would jump" in str(refused.value) and "--allow_schedule_change 1" in str(
        refused.value
    )
    for flag in ("--allow_schedule_change", "--resume_with_changed_settings"):
        (line,) = check_length(start, run(model, flag), 48)
        assert "training steps 16 -> 48; warmup_steps 0 -> 1; learning rate of step 17 2e-06 -> 1.58e-05." in line
        assert "continues with the new ones (--allow_schedule_change)" in line
    with pytest.raises(UserError, match="learning_rate 2e-05 -> 0.0001"):
        check_length(start, run(model, "--learning_rate", "1e-4"), _STEPS)


def test_the_flag_of_the_schedule_accepts_no_other_setting(model, start):
    with pytest.raises(UserError, match="seed 42 -> 7"):
        check_settings(start, run(model, "--seed", "7", "--allow_schedule_change"))


def test_a_warm_up_that_follows_the_length_is_named(model, tmp_path):
    flags = ("--warmup_ratio", "0.5", "--lr_scheduler_type", "constant_with_warmup")
    settings = json.loads(json.dumps(record_of(run(model, *flags), _STEPS)))
    write_checkpoint(tmp_path, 4, settings=settings)
    with pytest.raises(UserError) as refused:
        check_length(tmp_path, run(model, *flags), 32)
    expected = "training steps 16 -> 32; warmup_steps 8 -> 16; learning rate of step 5 1.25e-05 -> 6.25e-06."
    assert expected in str(refused.value)


def test_another_length_is_reported_where_the_learning_rate_stays(model, tmp_path):
    constant = run(model, "--lr_scheduler_type", "constant")
    settings = json.loads(json.dumps(record_of(constant, _STEPS)))
    write_checkpoint(tmp_path, 16, settings=settings)
    (line,) = check_length(tmp_path, constant, 48)
    assert "training steps 16 -> 48; the learning-rate schedule up to this checkpoint is the same" in line


def test_changed_settings_of_the_data_are_named(model, start):
    found = changed_data_settings(start, run(model, "--dataset_name_or_path", "y.jsonl", "--chat_template", "alpaca"))
    assert found == ["dataset_name_or_path x.jsonl -> y.jsonl", "chat_template auto -> alpaca"]


def test_an_older_checkpoint_without_a_record_is_reported(model, tmp_path):
    identity = {"model": {"hidden_size": 8}, "data": "first"}
    write_old_manifest(tmp_path, identity=identity)
    assert "has no record of its settings" in check_settings(tmp_path, run(model))[0]
    assert check_length(tmp_path, run(model), 3) == []
    old_data = {"data": "first", "samples": [], "rows": "any"}
    check_identity(tmp_path, RunIdentity(identity["model"], DataIdentity({}), old_data))


def test_pretraining_compares_its_own_fields(model):
    assert {"split", "max_seq_length"} <= set(compared_fields("pretrain"))
    assert "loss_on" not in compared_fields("pretrain")
    assert record_of(run(model, entry="pretrain"), 3)["by_content"]["input_dir"] == "c"
