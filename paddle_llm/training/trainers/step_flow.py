"""The callback that measures each step and decides when the training loop logs, evaluates and saves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from paddlenlp.trainer import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from paddlenlp.trainer.trainer_utils import IntervalStrategy

if TYPE_CHECKING:
    from paddle_llm.training.trainers.pretrain_trainer import PretrainTrainer


class StepFlow(TrainerCallback):
    """Starts and stops the clocks of each step and completes the loop's flags; called after DefaultFlowCallback.

    Args:
        trainer: Trainer whose meter and data set are used.
    """

    def __init__(self, trainer: PretrainTrainer):
        self._trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Restore the metrics of a resumed run and start the clock of the first step."""
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
        """Clear the flags: the loop's only epoch ends with the last step, after which everything is done."""
        control.should_log = control.should_evaluate = control.should_save = False


def _is_due(strategy: IntervalStrategy, is_last: bool, epoch_ends: bool) -> bool:
    return epoch_ends if strategy == IntervalStrategy.EPOCH else is_last and strategy == IntervalStrategy.STEPS
