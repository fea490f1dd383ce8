"""A training of one process that gets real signals: at every point of a step, while it evaluates, saves and ends."""

from __future__ import annotations

import os
import signal
from contextlib import contextmanager

import numpy as np
import pytest

from paddle_llm.checkpoint import folder as checkpoints
from paddle_llm.checkpoint.format.verify import problem_of
from paddle_llm.checkpoint.saving import protocol
from paddle_llm.core.errors import EXIT_INTERRUPTED, EXIT_RESUME, StopRequested, exit_on_user_error
from paddle_llm.parallel.process.stop_request import MARK_VARIABLE, defer_stop, stop_on_signals
from paddle_llm.training.evaluation import mean_loss
from paddle_llm.training.trainers.pretrain_trainer import PretrainTrainer
from tests.helpers.pretrain_jobs import config, make_trainer, numbers, rows, weights


def send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


@contextmanager
def signal_at(monkeypatch, number: signal.Signals, owner: object, name: str, step: int, call: int = 0):
    """Send a signal when `owner.name` is called for the `call`-th time while `step` steps are complete."""
    original, calls = getattr(owner, name), []

    def function(*args, **kwargs):
        trainer = trainers[0]
        if trainer.state.global_step == step:
            if len(calls) == call:
                send(number)
            calls.append(1)
        return original(*args, **kwargs)

    trainers: list[PretrainTrainer] = []
    with monkeypatch.context() as patch, stop_on_signals(True):
        patch.setattr(owner, name, function)
        yield trainers


def stopped(trainer, trainers, resume=None) -> StopRequested:
    trainers.append(trainer)
    with pytest.raises(StopRequested) as stop:
        trainer.train(resume)
    return stop.value


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The rows and weights of an uninterrupted run of 12 steps: rows every 3, evaluations every 6, checkpoints every 5."""
    folder = tmp_path_factory.mktemp("whole")
    trainer = make_trainer(config(folder))
    trainer.train()
    return numbers(folder / "output"), weights(trainer.model)


# Function during which the signal arrives, completed steps at that time, number of the call, step that is saved.
POINTS = {
    "first micro-batch": (PretrainTrainer, "training_step", 3, 0, 4),
    "within accumulation": (PretrainTrainer, "training_step", 3, 1, 4),
    "between backward and update": (PretrainTrainer, "_check_loss_valid", 3, 0, 4),
    "after the update": (PretrainTrainer, "_maybe_log_save_evaluate", 4, 0, 5),
    "before an evaluation": (PretrainTrainer, "evaluate", 6, 0, 6),
    "within an evaluation": (mean_loss, "_loss_sum", 6, 1, 6),
    "last batch of an evaluation": (mean_loss, "_loss_sum", 6, 7, 6),
    "before the last evaluation": (PretrainTrainer, "training_step", 11, 1, 12),
    "within the last evaluation": (mean_loss, "_loss_sum", 12, 1, 12),
    "saving": (protocol, "seal", 5, 0, 5),
    "last step": (PretrainTrainer, "training_step", 11, 0, 12),
}


@pytest.mark.parametrize("point", POINTS)
def test_a_signal_saves_at_the_end_of_the_step_and_the_resumed_run_is_exact(point, whole, tmp_path, monkeypatch):
    owner, name, step, call, saved = POINTS[point]
    run = config(tmp_path)
    with signal_at(monkeypatch, signal.SIGTERM, owner, name, step, call) as trainers:
        stop = stopped(make_trainer(run), trainers)
    assert stop.code == EXIT_RESUME
    newest, _ = checkpoints.newest_complete(tmp_path / "output")
    assert newest == tmp_path / "output" / f"checkpoint-{saved}"
    assert f"SIGTERM was received. The state after step {saved} is in {newest}. Start again to resume." == stop.message
    resumed = make_trainer(run)
    resumed.train(str(newest))
    assert numbers(tmp_path / "output") == whole[0]
    assert all(np.array_equal(whole[1][key], value) for key, value in weights(resumed.model).items())


def test_an_evaluation_that_was_stopped_is_repeated_and_recorded_once(whole, tmp_path, monkeypatch):
    """It is stopped after two of eight batches, and once more after one; the run is then resumed from the same step twice."""
    run, checkpoint = config(tmp_path), str(tmp_path / "output" / "checkpoint-6")
    for call, start in ((1, None), (0, checkpoint)):
        batches = []
        original = mean_loss._loss_sum

        def counted(*args, batches=batches, original=original):
            batches.append(args[0].state.global_step)
            return original(*args)

        with monkeypatch.context() as patch:
            patch.setattr(mean_loss, "_loss_sum", counted)
            with signal_at(monkeypatch, signal.SIGUSR1, mean_loss, "_loss_sum", 6, call) as trainers:
                stop = stopped(make_trainer(run), trainers, start)
        assert stop.code == EXIT_RESUME and f"The state after step 6 is in {checkpoint}." in stop.message
        assert batches == [6] * (call + 1)
        assert [row["step"] for row in rows(tmp_path / "output") if "eval_loss" in row] == []
    for _ in range(2):
        make_trainer(run).train(checkpoint)
        assert numbers(tmp_path / "output") == whole[0]


def test_an_evaluation_that_was_stopped_selects_the_best_checkpoint_later(tmp_path, monkeypatch):
    """The first evaluation, which is interrupted, is the best one."""
    run = config(tmp_path, save_steps=4, eval_steps=4, load_best_model_at_end=True)
    with signal_at(monkeypatch, signal.SIGTERM, mean_loss, "_loss_sum", 4, 2) as trainers:
        stopped(make_trainer(run), trainers)
    first = tmp_path / "output" / "checkpoint-4"
    resumed = make_trainer(run)
    resumed.train(str(first))
    losses = [row["eval_loss"] for row in rows(tmp_path / "output") if "eval_loss" in row]
    assert len(losses) == 3 and losses[0] == min(losses)
    assert resumed.state.best_model_checkpoint == str(first)
    assert resumed.evaluate()["eval_loss"] == pytest.approx(losses[0], rel=1e-6)


def test_a_stop_waits_for_the_save_in_the_background(whole, tmp_path, monkeypatch):
    """The signal arrives in the step after a save, which then may not have ended."""
    run = config(tmp_path)
    with signal_at(monkeypatch, signal.SIGTERM, PretrainTrainer, "training_step", 5) as trainers:
        stopped(make_trainer(run, async_save=True), trainers)
    output = tmp_path / "output"
    assert [step for step, _ in checkpoints.list_checkpoints(output)] == [5, 6]
    assert all(problem_of(folder, "full") is None for _, folder in checkpoints.list_checkpoints(output))
    assert not list(output.glob(".saving-*"))
    resumed = make_trainer(run, async_save=True)
    resumed.train(str(output / "checkpoint-6"))
    assert numbers(output) == whole[0]
    assert all(np.array_equal(whole[1][key], value) for key, value in weights(resumed.model).items())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_each_signal_ends_with_code_75_and_one_line(number, tmp_path, monkeypatch, capfd):
    mark = tmp_path / "mark"
    monkeypatch.setenv(MARK_VARIABLE, str(mark))
    run = config(tmp_path, do_eval=False)
    sent = signal_at(monkeypatch, number, PretrainTrainer, "training_step", 1)
    with pytest.raises(SystemExit) as end, exit_on_user_error(), sent as trainers:
        trainers.append(make_trainer(run))
        trainers[0].train()
    assert end.value.code == EXIT_RESUME and mark.exists()
    lines = [line for line in capfd.readouterr().err.splitlines() if number.name in line]
    assert lines[0].startswith(f"{number.name}: the training saves its state at the end of this step and stops.")
    assert ("Ctrl-C again" in lines[0]) == (number == signal.SIGINT)
    assert lines[1].startswith(f"stopped: {number.name} was received.") and "Start again to resume." in lines[1]
    assert len(lines) == 2
    assert signal.getsignal(number) == signal.SIG_IGN  # a repeated signal does not change the exit code


def test_a_second_ctrl_c_ends_at_once(tmp_path, monkeypatch, capsys):
    def interrupt_twice(number):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr("tests.training.test_stop.send", interrupt_twice)
    sent = signal_at(monkeypatch, signal.SIGINT, PretrainTrainer, "training_step", 3)
    with pytest.raises(SystemExit) as end, exit_on_user_error(), sent as trainers:
        trainers.append(make_trainer(config(tmp_path)))
        trainers[0].train()
    assert end.value.code == EXIT_INTERRUPTED
    assert "interrupted. Run the same command again" in capsys.readouterr().err
    assert checkpoints.newest_complete(tmp_path / "output")[0] is None


def test_other_signals_may_be_repeated():
    """Paddle's launcher sends SIGTERM up to three times."""
    with stop_on_signals(True):
        defer_stop(True)
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGTERM):
            send(number)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_outside_of_training_a_signal_ends_the_process_at_once(number):
    with pytest.raises(StopRequested, match="75") as stop, stop_on_signals(True):
        send(number)
    assert stop.value.message.startswith(f"{number.name} was received outside of training steps.")


def test_outside_of_training_ctrl_c_interrupts():
    with pytest.raises(KeyboardInterrupt), stop_on_signals(True):
        send(signal.SIGINT)


def test_an_ignored_ctrl_c_stays_ignored():
    """A command in the background of a script (`command &`) starts with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stop_on_signals(True):
            send(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_the_handlers_of_the_caller_are_restored():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)]
    with stop_on_signals(True):
        pass
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)] == before


def test_after_the_last_step_without_checkpoints_the_signal_has_no_effect(tmp_path, monkeypatch, capsys):
    """A restart would repeat the whole training."""
    run = config(tmp_path, save_strategy="no", do_eval=False, max_steps=2)
    with signal_at(monkeypatch, signal.SIGTERM, PretrainTrainer, "_maybe_log_save_evaluate", 2, 1) as trainers:
        trainers.append(make_trainer(run))
        trainers[0].train()
    assert "the signal has no effect" in capsys.readouterr().err
