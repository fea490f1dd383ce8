"""A step that is not a number: stop and name the batch, or skip the update and count, the same on every rank.

Under fp16 a gradient that overflows while the losses are finite is the loss scaler's business: it leaves the update out
and halves its scale, which is how it finds the scale to begin with.

The global gradient norm is what is watched. Every rank computes the same one between backward and update, a loss that
is NaN anywhere makes it NaN, and on a CPU the loss alone would not tell: Paddle's softmax kernel turns a row of NaN
into equal shares (paddle 3.3.1), so that the loss reads ln(vocabulary).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import paddle.distributed as dist

from paddle_llm.checkpoint.folder import newest_complete
from paddle_llm.core.console import say
from paddle_llm.core.errors import TrainingStopped

if TYPE_CHECKING:
    from paddle_llm.training.trainers.pretrain_trainer import PretrainTrainer


class _SkipUpdate(Exception):
    """Leaves the optimizer's step between the norm and the update."""


class NanGuard:
    """Watches every step of one trainer.

    Attributes:
        policy: "stop" or "skip".
        skipped: whether the last update was skipped, by this policy or by the loss scaler.
    """

    def __init__(self, policy: str, trainer: PretrainTrainer):
        self.policy = policy
        self.skipped = False
        self._trainer = trainer

    def guard(self, optimizer) -> None:
        """Let a skipped update leave the optimizer's step. The loop calls `step`, or `_step` of fleet's."""
        for name in ("step", "_step"):
            if hasattr(type(optimizer), name):
                setattr(optimizer, name, self._leave_quietly(getattr(optimizer, name)))

    def _leave_quietly(self, update):
        def step(*args, **kwargs):
            self.skipped = False
            try:
                update(*args, **kwargs)
            except _SkipUpdate:
                self.skipped = True

        return step

    def check(self, norm: float) -> None:
        """Called with the global gradient norm, before any parameter is changed, on all ranks; the step's scalars are read.

        Raises:
            TrainingStopped: it is not finite, and the policy is "stop".
        """
        if math.isfinite(norm):
            return
        trainer = self._trainer
        losses = _all_losses(trainer.scalars.loss)
        if _scaler_overflowed(trainer) and all(map(math.isfinite, losses)):
            say(f"step {trainer.state.global_step + 1}: gradients overflow fp16, no update; the loss scale is lowered")
            self.skipped = True  # by the optimizer, which has the scaler's flag
            return
        story = _tell(norm, losses, trainer)
        if self.policy == "stop":
            newest, _ = newest_complete(trainer.args.output_dir)
            last_good = f"The last good checkpoint is {newest}." if newest else "There is no checkpoint yet."
            raise TrainingStopped(f"{story} {last_good} To go on without such steps: --nan_policy skip.")
        say(f"{story} Its update is skipped (--nan_policy skip).")
        raise _SkipUpdate


def _scaler_overflowed(trainer: PretrainTrainer) -> bool:
    """The loss scaler has seen it, too, and will leave the update out (the same on every rank)."""
    return trainer.do_grad_scaling and bool(trainer.scaler._found_inf)


def _all_losses(mine: float) -> list[float]:
    """The step's loss of every rank. All ranks are here: they share the norm that is not finite."""
    if dist.get_world_size() == 1:
        return [mine]
    losses: list[float] = []
    dist.all_gather_object(losses, mine)
    return losses


def _tell(norm: float, losses: list[float], trainer: PretrainTrainer) -> str:
    bad = [str(rank) for rank, loss in enumerate(losses) if not math.isfinite(loss)]
    where = f"the loss is not finite on rank {', '.join(bad)}" if bad else f"the gradient norm is {norm}"
    first = trainer.state.global_step * trainer.global_batch
    samples = range(first, first + trainer.global_batch)
    name = getattr(trainer.train_dataset, "sample_ids", None)
    named = f": {'; '.join(str(name(i)) for i in samples[:8])}{'; ...' if len(samples) > 8 else ''}" if name else ""
    return f"{where} at step {trainer.state.global_step + 1}. Its batch was samples {samples.start} to {samples.stop - 1} of the global order{named}."
