"""The callback that measures each step and decides when the training loop logs, evaluates and saves; the end of a step."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import paddle
from paddlenlp.trainer import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from paddlenlp.trainer.trainer_utils import IntervalStrategy

from paddle_llm.checkpoint.folder import checkpoint_folder
from paddle_llm.core.console import say
from paddle_llm.parallel.process.stop_request import AGAIN, agree_on_stop, defer_stop, describe_request, stop
from paddle_llm.training.callbacks import REPORT_PRIORITY
from paddle_llm.training.evaluation.interruption import EvaluationStopped
from paddle_llm.training.metrics.reports import report_first_step

if TYPE_CHECKING:
    from paddle_llm.training.trainers.pretrain_trainer import PretrainTrainer


class StepFlow(TrainerCallback):
    """Starts and stops the clocks of each step and completes the loop's flags; called after DefaultFlowCallback.

    Args:
        trainer: Trainer whose meter and data set are used.
    """

    def __init__(self, trainer: PretrainTrainer):
        self._trainer = trainer
        self._saved_step: int | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Restore the metrics of a resumed run and start the clock of the first step. From now on signals are recorded."""
        defer_stop(True)
        self._trainer.restore_meter()
        self._trainer.meter.start_step()

    def on_load_data_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop the clock of waiting for data."""
        self._trainer.meter.data_arrived()

    def on_substep_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the clock of waiting for the next micro-batch."""
        self._trainer.meter.start_waiting()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Request a row, an evaluation and a checkpoint at the end of the run, and the last two at the end of an epoch.

        The data set contains all epochs, so the loop does not see where one ends.
        """
        is_last = state.global_step >= state.max_steps
        epoch_ends = is_last or self._trainer.ends_epoch(state.global_step)
        control.should_log |= is_last
        control.should_evaluate |= _is_due(args.evaluation_strategy, is_last, epoch_ends)
        control.should_save |= _is_due(args.save_strategy, is_last, epoch_ends)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Clear the flags and wait for a save in the background: the loop's only epoch ends with the last step."""
        control.should_log = control.should_evaluate = control.should_save = False
        self._trainer.saver.complete()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop if a signal has arrived since the last step was saved; a later one ends the process at once.

        Then set the weights of the best checkpoint, whose files PaddleNLP's loop does not find.
        """
        if agree_on_stop():
            if self._saved_step == state.global_step:
                _stop(self._trainer)
            say("The training has no further steps and writes its results: the signal has no effect.")
        defer_stop(False)
        self._trainer.load_best()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Remember that the state after this step is saved."""
        self._saved_step = state.global_step


class RepeatedEvaluation(TrainerCallback):
    """Repeats the evaluation that a stop has interrupted, when the training resumes; called after the reports have begun.

    Args:
        trainer: Trainer that evaluates.
    """

    priority = REPORT_PRIORITY + 1

    def __init__(self, trainer: PretrainTrainer):
        self._trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Evaluate the checkpoint if its evaluation is due, and this training evaluates."""
        due, start = self._trainer.due_evaluation, self._trainer.start
        if due is not None and start is not None and self._trainer.eval_dataset is not None:
            _repeat_evaluation(self._trainer, start, due)
        self._trainer.due_evaluation = None


def _is_due(strategy: IntervalStrategy, is_last: bool, epoch_ends: bool) -> bool:
    return epoch_ends if strategy == IntervalStrategy.EPOCH else is_last and strategy == IntervalStrategy.STEPS


def finish_step(trainer: PretrainTrainer, model: paddle.nn.Layer) -> None:
    """Count a step, then log, evaluate and save as the flags of the loop request. Collective over all ranks.

    If a rank was asked to stop, the state is saved and the training ends. Signals that arrive before the gradients of
    the last micro-batch are complete take effect at the end of that step, later ones at the end of the next; those that
    arrive during an evaluation after its current batch, and those that arrive while a checkpoint is written right
    afterwards.

    Args:
        trainer: Trainer whose step has ended.
        model: Network inside fleet's wrapper.

    Raises:
        StopRequested: If a rank was asked to stop.
    """
    stops, save_ended, spike = False, False, None
    if trainer.state.global_step != trainer.meter.step:
        spike = _count_step(trainer)
        stops, save_ended = trainer.scalars.stops, trainer.scalars.save_ended
    if trainer.control.should_log and trainer.meter.window.steps:
        consumed = trainer.consumed_samples(trainer.state.global_step)
        row = trainer.meter.row(grad_norm=trainer.scalars.grad_norm, consumed_samples=consumed)
        trainer.log({**row, "epoch": trainer.epoch_of(consumed)})
    # Other rows follow that of the step, because writing a row clears the flag.
    if spike is not None:
        trainer.log(spike)
    if save_ended:
        trainer.saver.settle()
    metrics = None
    if trainer.control.should_evaluate:
        try:
            metrics = trainer.evaluate()
        except EvaluationStopped:
            trainer.due_evaluation = {"selects_best": bool(trainer.control.should_save)}
            say("The evaluation is not completed. The resumed training repeats it.")
        stops = stops or agree_on_stop()
    if trainer.control.should_save or stops:
        trainer._save_checkpoint(model, metrics=metrics)
        trainer.control = trainer.callback_handler.on_save(trainer.args, trainer.state, trainer.control)
        stops = stops or agree_on_stop()
    if stops:
        _stop(trainer)
    trainer.meter.start_step()


def _count_step(trainer: PretrainTrainer) -> dict[str, Any] | None:
    """Add a step to the metrics; return the row about its loss if that is a spike."""
    scalars, meter, guard, step = trainer.scalars, trainer.meter, trainer.nan_guard, trainer.state.global_step
    if not scalars.is_read:  # no parameter had a gradient, so no norm was computed
        scalars.read(None)
    meter.end_step(step, scalars.loss, labels=scalars.labels, skipped=guard.skipped)
    trainer._total_loss_scalar += 0.0 if guard.skipped else scalars.loss
    if step == 1 and not trainer.control.should_log:
        report_first_step(trainer.callback_handler.callbacks, trainer.state.max_steps, meter.mean_loss())
    deviations = meter.spikes.add(scalars.mean_loss)
    if deviations is None:
        return None
    say(
        f"step {step}: the loss {scalars.mean_loss:.4f} is a spike, {deviations:.1f} standard deviations above the mean of the "
        f"steps before it. {'The update is skipped (--spike_policy skip).' if guard.skipped else 'The step is marked.'}"
    )
    return {"step": step, "spike_loss": scalars.mean_loss, "spike_deviations": deviations}


def _repeat_evaluation(trainer: PretrainTrainer, start: Path, due: dict[str, bool]) -> None:
    """Evaluate the state from which a training resumes. Collective over all ranks.

    Args:
        trainer: Trainer that has loaded its checkpoint.
        start: The checkpoint.
        due: See `due_evaluation` of the trainer.

    Raises:
        StopRequested: If a rank is asked to stop again.
    """
    try:
        metrics = trainer.evaluate()
    except EvaluationStopped:
        _stop(trainer, start)
    if due["selects_best"]:
        trainer.saver.compare_with_best(metrics, start)
    trainer.meter.start_step()


def _stop(trainer: PretrainTrainer, saved: Path | None = None) -> NoReturn:
    """End the training after its state was saved, by default in its output folder. Collective over all ranks."""
    trainer.saver.complete()
    saved = saved or checkpoint_folder(trainer.args.output_dir, trainer.state.global_step)
    stop(f"{describe_request()} The state after step {trainer.state.global_step} is in {saved}. {AGAIN}")
