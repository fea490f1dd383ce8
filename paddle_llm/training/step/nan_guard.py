"""Handle a non-finite step in the same way on every rank: stop, skip the update, or go back to a checkpoint.

The guard checks the global gradient norm. Every rank computes the same norm between backward and update, and a loss
that is NaN on any rank makes it NaN. On a CPU the loss alone would not show it: Paddle's softmax kernel (3.3.1) turns a
row of NaN into equal probabilities, so the loss is ln(vocabulary).

With fp16, the loss scaler handles gradients that overflow while the losses are finite: it skips the update and halves
its scale. In the same way it finds its first scale.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import paddle
import paddle.distributed as dist

from paddle_llm.checkpoint.folder import newest_complete
from paddle_llm.checkpoint.saving.protocol import SaveFailed
from paddle_llm.core.console import say
from paddle_llm.core.errors import TrainingStopped
from paddle_llm.training.options import TrainerOptions
from paddle_llm.training.rollback import Rollback, RollbackRequested

if TYPE_CHECKING:
    from paddle_llm.training.trainers.pretrain_trainer import PretrainTrainer

_SHOWN_SAMPLES = 8


class _SkipUpdate(Exception):
    """Raised inside the optimizer's step, between the norm and the update, to skip the update."""


class NanGuard:
    """Guards every step of one trainer.

    Attributes:
        options: Policies for non-finite steps and loss spikes.
        skipped: Whether the last update was skipped, by a policy or by the loss scaler.
        rollbacks: Earlier rollbacks of the training, whose samples are skipped.

    Args:
        options: See above.
        trainer: Trainer whose steps are guarded.
    """

    def __init__(self, options: TrainerOptions, trainer: PretrainTrainer):
        self.options = options
        self.skipped = False
        self.rollbacks: list[Rollback] = []
        self._trainer = trainer

    def guard(self, optimizer: paddle.optimizer.Optimizer) -> None:
        """Wrap the optimizer's step, so that a skipped update only ends the step.

        Args:
            optimizer: Optimizer as the loop uses it: the loop calls `step`, or `_step` of fleet's optimizer.
        """
        for name in ("step", "_step"):
            if hasattr(type(optimizer), name):
                setattr(optimizer, name, self._catch_skipped(getattr(optimizer, name)))

    def _catch_skipped(self, update: Callable[..., Any]) -> Callable[..., None]:
        def step(*args: Any, **kwargs: Any) -> None:
            self.skipped = False
            try:
                update(*args, **kwargs)
            except _SkipUpdate:
                self.skipped = True

        return step

    def check(self, norm: float) -> None:
        """Check a step before any parameter is changed. Called on all ranks after the step's scalars are read.

        Args:
            norm: Global gradient norm.

        Raises:
            TrainingStopped: If the norm is not finite and the policy is "stop", or the rollbacks are used up.
            RollbackRequested: If the norm is not finite and the policy is "rollback".
        """
        trainer = self._trainer
        samples = _samples(trainer)
        if any(
            rollback.first_sample < samples.stop and samples.start <= rollback.last_sample
            for rollback in self.rollbacks
        ):
            say(f"step {trainer.state.global_step + 1}: the update is skipped, because of an earlier rollback")
            raise _SkipUpdate
        if math.isfinite(norm):
            if self.options.spike_policy == "skip" and trainer.meter.spikes.is_spike(trainer.scalars.mean_loss):
                raise _SkipUpdate
            return
        losses = _all_losses(trainer.scalars.loss)
        if _scaler_overflowed(trainer) and all(map(math.isfinite, losses)):
            say(f"step {trainer.state.global_step + 1}: gradients overflow fp16; no update, the loss scale is lowered")
            self.skipped = True  # the optimizer skips it, because of the scaler's flag
            return
        problem = _describe(norm, losses, trainer)
        if self.options.nan_policy == "skip":
            say(f"{problem} The update is skipped (--nan_policy skip).")
            raise _SkipUpdate
        if self.options.nan_policy == "rollback" and len(self.rollbacks) < self.options.max_rollbacks:
            raise RollbackRequested(Rollback(trainer.state.global_step + 1, samples.start, samples.stop - 1, problem))
        try:
            trainer.saver.complete()
        except SaveFailed as error:
            say(str(error))
        newest, _ = newest_complete(trainer.args.output_dir)
        last_good = f"The newest checkpoint is {newest}." if newest else "There is no checkpoint yet."
        remedy = "To skip such steps, use --nan_policy skip or rollback."
        if self.options.nan_policy == "rollback":
            remedy = f"The training was rolled back {len(self.rollbacks)} times already (--max_rollbacks)."
        raise TrainingStopped(f"{problem} {last_good} {remedy}")


def _scaler_overflowed(trainer: PretrainTrainer) -> bool:
    """Return whether the loss scaler has found an overflow, too, and will skip the update (the same on every rank)."""
    return trainer.do_grad_scaling and bool(trainer.scaler._found_inf)


def _all_losses(mine: float) -> list[float]:
    """Return the step's loss of every rank. Collective: all ranks see the same non-finite norm."""
    if dist.get_world_size() == 1:
        return [mine]
    losses: list[float] = []
    dist.all_gather_object(losses, mine)
    return losses


def _describe(norm: float, losses: list[float], trainer: PretrainTrainer) -> str:
    """Return a sentence about the step and one about its samples."""
    step = trainer.state.global_step + 1
    ranks = [str(rank) for rank, loss in enumerate(losses) if not math.isfinite(loss)]
    where = f"the loss is not finite on rank {', '.join(ranks)}" if ranks else f"the gradient norm is {norm}"
    samples = _samples(trainer)
    name = getattr(trainer.train_dataset, "sample_ids", None)
    named = ""
    if name is not None:
        shown = "; ".join(str(name(i)) for i in samples[:_SHOWN_SAMPLES])
        named = f": {shown}{'; ...' if len(samples) > _SHOWN_SAMPLES else ''}"
    return f"{where} at step {step}. It used samples {samples.start} to {samples.stop - 1} of the global order{named}."


def _samples(trainer: PretrainTrainer) -> range:
    """Return the samples of the current step, by their numbers in the global order."""
    first = trainer.consumed_samples(trainer.state.global_step)
    return range(first, first + trainer.global_batch)
