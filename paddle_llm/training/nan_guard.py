"""A loss that is not a number: stop and name the batch, or skip the update and count, the same on every rank."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import paddle
import paddle.distributed as dist

from paddle_llm.checkpoint.folder import newest_complete
from paddle_llm.config.console import say
from paddle_llm.config.errors import TrainingStopped

if TYPE_CHECKING:
    from paddle_llm.training.pretrain_trainer import PretrainTrainer


class NanGuard:
    """Watches the loss of every step.

    Attributes:
        policy: "stop" or "skip".
    """

    def __init__(self, policy: str):
        self.policy = policy
        self._skip_update = False

    def guard(self, optimizer) -> None:
        """Let the optimizer's step do nothing where `check` said so. The loop calls `step`, or `_step` of fleet's."""
        for name in ("step", "_step"):
            if hasattr(type(optimizer), name):
                setattr(optimizer, name, self._unless_skipped(getattr(optimizer, name)))

    def _unless_skipped(self, update):
        def step(*args, **kwargs):
            if not self._skip_update:
                update(*args, **kwargs)

        return step

    def check(self, loss: float, trainer: PretrainTrainer) -> bool:
        """Is the loss finite on every rank? Called between backward and update, on all ranks.

        Raises:
            TrainingStopped: it is not, and the policy is "stop".
        """
        bad_ranks = _ranks_where(not math.isfinite(loss))
        self._skip_update = bool(bad_ranks)
        if not bad_ranks:
            return True
        story = _tell(loss, bad_ranks, trainer)
        if self.policy == "stop":
            newest, _ = newest_complete(trainer.args.output_dir)
            last_good = f"The last good checkpoint is {newest}." if newest else "There is no checkpoint yet."
            raise TrainingStopped(f"{story} {last_good} To go on without such steps: --nan_policy skip.")
        say(f"{story} Its update is skipped (--nan_policy skip).")
        return False


def _ranks_where(flag: bool) -> list[int]:
    world = dist.get_world_size()
    if world == 1:
        return [0] if flag else []
    any_bad = paddle.to_tensor([float(flag)], dtype="float32")
    dist.all_reduce(any_bad, op=dist.ReduceOp.MAX)
    if float(any_bad) == 0.0:
        return []
    flags: list[bool] = []
    dist.all_gather_object(flags, flag)
    return [rank for rank, bad in enumerate(flags) if bad]


def _tell(loss: float, bad_ranks: list[int], trainer: PretrainTrainer) -> str:
    step = trainer.state.global_step
    first = step * trainer.global_batch
    samples = range(first, first + trainer.global_batch)
    name = getattr(trainer.train_dataset, "sample_ids", None)
    named = f": {'; '.join(str(name(i)) for i in samples[:8])}{'; ...' if len(samples) > 8 else ''}" if name else ""
    return (
        f"the loss is {loss if not math.isfinite(loss) else 'not finite'} at step {step + 1} on rank "
        f"{', '.join(map(str, bad_ranks))}. The batch was samples {samples.start} to {samples.stop - 1} of the global order{named}."
    )
