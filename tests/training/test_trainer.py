"""PretrainTrainer in one process: rows, schedule, epochs, clipping, evaluation, exact resume, NaN."""

from __future__ import annotations

import errno
import math
import os

import numpy as np
import paddle
import pytest

from paddle_llm.checkpoint.output_lock import RUN_LOCK
from paddle_llm.config.steps import learning_rate_factor
from paddle_llm.core.durable_files import operations_passed_to
from paddle_llm.core.errors import TrainingStopped, UserError
from tests.helpers.models.tiny import write_bloom
from tests.helpers.pretrain_jobs import (
    EPOCH,
    VOCABULARY,
    Toy,
    config,
    make_poisoned_trainer,
    make_trainer,
    numbers,
    rows,
    weights,
)

KEYS = {
    "step",
    "loss",
    "grad_norm",
    "learning_rate",
    "tokens_per_second",
    "tokens_per_second_per_device",
    "mfu",
    "peak_memory_bytes",
    "consumed_samples",
    "consumed_tokens",
    "step_seconds",
    "data_wait_seconds",
}


def test_rows_have_the_promised_keys_and_true_numbers(tmp_path):
    run = config(tmp_path)
    make_trainer(run).train()
    train = [row for row in rows(tmp_path / "output") if "loss" in row]
    evaluation = [row for row in rows(tmp_path / "output") if "eval_loss" in row]
    assert [row["step"] for row in train] == [3, 6, 9, 12]
    assert set(train[0]) >= KEYS
    assert [row["consumed_samples"] for row in train] == [6, 12, 18, 24]
    assert [row["consumed_tokens"] for row in train] == [96, 192, 288, 384]
    assert [row["step"] for row in evaluation] == [6, 12]
    assert evaluation[0]["eval_ppl"] == pytest.approx(math.exp(evaluation[0]["eval_loss"]))
    assert all(row["mfu"] is None for row in train)  # a CPU's peak is not known


def test_loss_and_norm_are_those_of_the_global_batch(tmp_path):
    """The first row equals a computation by hand: the mean over all tokens of 2 micro-batches, the norm before clipping."""
    run = config(tmp_path, max_steps=1, logging_steps=1, do_eval=False, max_grad_norm=1e-3)
    trainer = make_trainer(run)
    model = make_trainer(run).model
    samples = [Toy(2)[i] for i in range(2)]
    batch = {k: paddle.to_tensor(np.stack([s[k] for s in samples])) for k in samples[0]}
    loss = model(**batch)
    loss = loss[0] if isinstance(loss, tuple) else loss
    loss.backward()
    norm = math.sqrt(sum(float((p.grad**2).sum()) for p in model.parameters() if p.grad is not None))
    trainer.train()
    (row,) = rows(tmp_path / "output")
    assert row["loss"] == pytest.approx(float(loss), rel=1e-6)
    assert row["grad_norm"] == pytest.approx(norm, rel=1e-5)
    assert norm > 100 * run.max_grad_norm  # clipping was active


def test_without_clipping_the_norm_is_still_reported(tmp_path):
    run = config(tmp_path, max_steps=1, logging_steps=1, do_eval=False, max_grad_norm=0.0)
    make_trainer(run).train()
    assert rows(tmp_path / "output")[0]["grad_norm"] > 0


def test_learning_rate_of_a_row_is_the_one_its_step_was_taken_with(tmp_path):
    run = config(tmp_path, max_steps=8, logging_steps=1, warmup_steps=4, do_eval=False, lr_scheduler_type="linear")
    make_trainer(run).train()
    rates = [row["learning_rate"] for row in rows(tmp_path / "output")]
    assert rates[:4] == pytest.approx([0.0025, 0.005, 0.0075, 0.01])
    assert rates[4] == pytest.approx(0.01)
    assert rates[-1] == pytest.approx(0.001 + 0.009 * 0.25)


@pytest.mark.parametrize("kind", ["cosine", "linear", "constant_with_warmup", "polynomial"])
def test_schedule_warms_up_to_the_peak_and_ends_at_its_minimum(kind):
    def factor(step):
        return learning_rate_factor(step, kind=kind, warmup_steps=10, decay_steps=100, min_ratio=0.1, power=2.0)

    assert factor(0) == pytest.approx(0.1)
    assert factor(9) == factor(10) == 1.0
    assert factor(100) == factor(10_000) == pytest.approx(1.0 if kind == "constant_with_warmup" else 0.1)
    assert all(factor(s) >= factor(s + 1) for s in range(10, 99))


def test_a_constant_rate_has_no_warmup():
    rates = [
        learning_rate_factor(s, kind="constant", warmup_steps=10, decay_steps=100, min_ratio=0.1, power=1.0)
        for s in (0, 5, 50)
    ]
    assert rates == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("stop_at", [5, 10])
def test_resume_is_exact_bit_for_bit_in_any_epoch(tmp_path, stop_at):
    """Steps 5 and 10 are in the middle of a window of metrics; with 12-sample epochs step 10 is in the second epoch."""
    run = config(tmp_path, save_steps=stop_at)
    whole = make_trainer(run, samples_per_epoch=12)
    whole.train()
    expected, final = numbers(tmp_path / "output"), weights(whole.model)
    resumed = make_trainer(run, samples_per_epoch=12)
    resumed.train(str(tmp_path / "output" / f"checkpoint-{stop_at}"))
    assert numbers(tmp_path / "output") == expected
    assert all(np.array_equal(final[name], value) for name, value in weights(resumed.model).items())


def test_the_ends_of_epochs_are_detected(tmp_path):
    run = config(tmp_path, evaluation_strategy="epoch", save_strategy="epoch", logging_steps=100)
    make_trainer(run, samples_per_epoch=10).train()  # 2 samples a step: epochs end with steps 5 and 10
    found = rows(tmp_path / "output")
    assert [row["step"] for row in found if "eval_loss" in row] == [5, 10, 12]
    assert sorted(p.name for p in (tmp_path / "output").glob("checkpoint-*")) == [
        f"checkpoint-{s}" for s in (10, 12, 5)
    ]
    assert [row["step"] for row in found if "loss" in row] == [12]


class Plain:
    """A data set of a notebook: without order and epochs."""

    def __len__(self):
        return 11

    def __getitem__(self, index):
        return Toy(11)[index]


def test_a_plain_data_set_is_shuffled_in_every_epoch_and_resumed_exactly(tmp_path):
    """11 samples, 2 per step, 2.5 epochs: 13 steps, and step 10 is in the second epoch."""
    run = config(tmp_path, max_steps=-1, num_train_epochs=2.5, logging_steps=1, do_eval=False)
    whole = make_trainer(run, train=Plain())
    whole.train()
    assert whole.state.global_step == 13
    expected = numbers(tmp_path / "output")
    epochs = [[whole.train_dataset[e * 11 + i]["input_ids"].tobytes() for i in range(11)] for e in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) and epochs[0] != epochs[1]
    make_trainer(run, train=Plain()).train(str(tmp_path / "output" / "checkpoint-10"))
    assert numbers(tmp_path / "output") == expected


def test_every_epoch_is_complete_and_in_a_different_order():
    toy = Toy(3 * EPOCH)
    epochs = [[toy[e * EPOCH + i]["input_ids"].tobytes() for i in range(EPOCH)] for e in range(3)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(epochs[2])
    assert epochs[0] != epochs[1] != epochs[2]


def test_evaluation_is_the_mean_over_tokens_with_a_padded_last_batch(tmp_path):
    run = config(tmp_path, per_device_eval_batch_size=3)
    trainer = make_trainer(run, evaluation=Toy(7))
    model = trainer.model
    losses = []
    for index in range(7):
        sample = {k: paddle.to_tensor(v[None]) for k, v in Toy(7)[index].items()}
        out = model(**sample)
        losses.append(float(out[0] if isinstance(out, tuple) else out))
    assert trainer.evaluate()["eval_loss"] == pytest.approx(np.mean(losses), rel=1e-6)


def test_nan_stops_the_job_and_names_step_samples_and_checkpoint(tmp_path):
    trainer = make_poisoned_trainer(config(tmp_path, save_steps=3, do_eval=False))
    with pytest.raises(TrainingStopped) as stopped:
        trainer.train()
    message = str(stopped.value)
    assert "step 4" in message and "samples 6 to 7" in message and "toy sample 6" in message
    assert "checkpoint-3" in message and "--nan_policy skip" in message


def test_nan_is_skipped_and_counted(tmp_path, capsys):
    trainer = make_poisoned_trainer(config(tmp_path, nan_policy="skip", logging_steps=1, do_eval=False))
    trainer.train()
    found = rows(tmp_path / "output")
    assert [row["skipped_steps"] for row in found][-1] == 1
    assert found[3]["loss"] is None and all(math.isfinite(row["loss"]) for row in found if row["step"] != 4)
    assert all(np.isfinite(value).all() for value in weights(trainer.model).values())
    assert "is skipped" in capsys.readouterr().err


def test_another_global_batch_continues_at_the_next_sample(tmp_path, capsys):
    """5 steps of 2 samples, then steps of 3 samples: the sixth step uses samples 10 to 12."""
    make_trainer(config(tmp_path)).train()
    seen: list[int] = []

    class Recorded(Toy):
        def __getitem__(self, index):
            seen.append(index)
            return super().__getitem__(index)

    other = make_trainer(
        config(tmp_path, gradient_accumulation_steps=3, max_steps=8, do_eval=False), train=Recorded(24)
    )
    seen.clear()
    other.train(str(tmp_path / "output" / "checkpoint-5"))
    assert "global batch of 2 samples, and this job has 3" in capsys.readouterr().err
    assert [index for index in seen if index >= 8] == list(range(10, 19))
    assert rows(tmp_path / "output")[-1]["consumed_samples"] == 19


def test_requested_timers_are_printed(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("paddlenlp.trainer.plugins.timer._GLOBAL_TIMERS", None)  # of all later trainers, too
    make_trainer(config(tmp_path, max_steps=2, skip_profile_timer=False, do_eval=False)).train()
    printed = [
        line for line in capsys.readouterr().err.splitlines() if line.startswith("step ") and "optimizer-step" in line
    ]
    assert len(printed) == 2 and all("forward-backward" in line for line in printed)


def test_resume_is_exact_with_dropout(tmp_path):
    write_bloom(tmp_path / "bloom", vocab_size=VOCABULARY, hidden_dropout=0.1, attention_dropout=0.1)
    run = config(tmp_path, model_name_or_path=str(tmp_path / "bloom"))
    make_trainer(run).train()
    expected = numbers(tmp_path / "output")
    make_trainer(run).train(str(tmp_path / "output" / "checkpoint-5"))
    assert numbers(tmp_path / "output") == expected


def test_a_run_ends_with_the_best_model(tmp_path):
    run = config(tmp_path, load_best_model_at_end=True, save_steps=4, eval_steps=4, learning_rate=0.3, max_steps=8)
    trainer = make_trainer(run)
    trainer.train()
    best = min((row for row in rows(tmp_path / "output") if "eval_loss" in row), key=lambda row: row["eval_loss"])
    assert trainer.state.best_model_checkpoint == str(tmp_path / "output" / f"checkpoint-{best['step']}")
    assert trainer.evaluate()["eval_loss"] == pytest.approx(best["eval_loss"], rel=1e-6)


def test_reports_to_all_are_those_whose_packages_are_installed(tmp_path, monkeypatch):
    from paddle_llm.training import arguments

    monkeypatch.setattr(arguments, "find_spec", lambda name: object() if name in ("tensorboardX", "visualdl") else None)
    assert arguments._other_reports(["all"]) == ["tensorboard"]
    assert arguments._other_reports(["visualdl", "wandb"]) == ["wandb"]
    assert arguments._other_reports(["none"]) == []


def test_other_data_or_another_network_is_refused(tmp_path):
    """Otherwise both would continue without a message: at a wrong position, or with random layers."""

    class Other(Toy):
        def __getitem__(self, index):
            return super().__getitem__(index + 1)

    make_trainer(config(tmp_path)).train()
    checkpoint = str(tmp_path / "output" / "checkpoint-5")
    with pytest.raises(UserError, match="saved with different data"):
        make_trainer(config(tmp_path), train=Other(24)).train(checkpoint)
    with pytest.raises(UserError, match="num_hidden_layers 4 -> 3"):
        make_trainer(config(tmp_path, num_hidden_layers=3)).train(checkpoint)


def test_another_network_of_the_same_shape_is_refused(tmp_path):
    make_trainer(config(tmp_path)).train()
    other = make_trainer(config(tmp_path))
    other.model.config.rope_theta = 500_000.0
    with pytest.raises(UserError, match="rope_theta 10000.0 -> 500000.0"):
        other.train(str(tmp_path / "output" / "checkpoint-5"))


@pytest.mark.parametrize("name", ["rank-00000.safetensors", "state.json", "random-00000.json", "index.json"])
def test_a_damaged_file_is_one_message_and_changes_nothing(tmp_path, name):
    make_trainer(config(tmp_path, max_steps=5)).train()
    checkpoint = tmp_path / "output" / "checkpoint-5"
    file = checkpoint / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    trainer = make_trainer(config(tmp_path))
    before = weights(trainer.model)
    with pytest.raises(UserError, match=f"checkpoint-5.*{name}"):
        trainer.train(str(checkpoint))
    assert all(np.array_equal(before[key], value) for key, value in weights(trainer.model).items())


def test_a_full_disk_is_one_message_and_leaves_the_previous_checkpoint(tmp_path):
    def full(operation, path):
        if operation == "write" and path.parent.name == ".saving-10":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    message = "checkpoint-10 cannot be written: No space left on device"
    with operations_passed_to(full), pytest.raises(UserError, match=message):
        make_trainer(config(tmp_path)).train()
    assert [path.name for path in (tmp_path / "output").glob("*[0-9]")] == ["checkpoint-5"]


def test_a_training_continues_without_a_checkpoint_that_cannot_be_written(tmp_path, capsys):
    def full(operation, path):
        if operation == "write" and path.parent.name == ".saving-5":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    trainer = make_trainer(config(tmp_path), continue_without_save=True)
    with operations_passed_to(full):
        trainer.train()
    assert sorted(path.name for path in (tmp_path / "output").glob("*checkpoint*")) == [
        "checkpoint-10",
        "checkpoint-12",
    ]
    assert "checkpoint-5 cannot be written: No space left on device" in capsys.readouterr().err


def test_a_cpu_job_is_refused_while_paddle_is_on_a_gpu(tmp_path, monkeypatch):
    """TrainingArguments do not set the device, and the weights would already be on the card."""
    import paddle

    monkeypatch.setattr(paddle, "get_device", lambda: "gpu:0")
    with pytest.raises(UserError, match=r'but Paddle is on gpu:0. Call paddle.set_device\("cpu"\) before the model'):
        make_trainer(config(tmp_path))


def test_a_training_from_python_locks_its_output_folder_too(tmp_path):
    trainer = make_trainer(config(tmp_path))
    (tmp_path / "output").mkdir(exist_ok=True)
    lock = tmp_path / "output" / RUN_LOCK
    lock.write_text('{"host": "elsewhere", "pid": 7}')
    with pytest.raises(UserError, match="in use by another job: process 7 on host elsewhere"):
        trainer.train()
    lock.unlink()
    trainer.train()
    assert not lock.exists() and rows(tmp_path / "output")
