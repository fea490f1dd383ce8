"""End an evaluation early if the training was asked to stop: a long one would outlast the time that a scheduler gives.

The state is saved without a result of the evaluation, and the resumed training repeats it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from paddle_llm.parallel.process.stop_request import agree_on_stop, is_stop_deferred

if TYPE_CHECKING:
    from paddle_llm.training.trainers.pretrain_trainer import PretrainTrainer


class EvaluationStopped(Exception):
    """Raised on every rank, between two batches of an evaluation, if a rank was asked to stop."""


def stop_if_requested(trainer: PretrainTrainer) -> None:
    """End an evaluation within a training if any rank was asked to stop. Collective over all ranks.

    Args:
        trainer: Trainer that evaluates.

    Raises:
        EvaluationStopped: If a rank was asked to stop.
    """
    if is_stop_deferred() and not trainer.completes_evaluations and agree_on_stop():
        raise EvaluationStopped
