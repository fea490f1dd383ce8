"""`--nan_policy rollback`: after a non-finite step, go back to the newest checkpoint and skip that step when it comes again.

The checkpoint is verified completely, and a damaged one is passed over: a device that computes NaN may also have written
it. The network, the optimizer and the trainer are built again and resume as a new process would, on every rank of the same
job. This is the path of every resume, in every layout; no part of the state that produced the non-finite step is used
again. The order of samples does not change: the update of the global batch is skipped, its step is counted.

`rollbacks.json` in the output folder lists the rollbacks. It is written before the trainer is built again, so a job
that is killed meanwhile skips the same samples.
"""

from __future__ import annotations

import dataclasses
import gc
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from paddle_llm.checkpoint.folder import newest_complete, step_of
from paddle_llm.core.artifacts import ROLLBACKS
from paddle_llm.core.atomic_output import write_atomically
from paddle_llm.core.console import say
from paddle_llm.core.errors import TrainingStopped
from paddle_llm.core.json_files import read_json_object
from paddle_llm.parallel.process.first_rank import on_first_rank

if TYPE_CHECKING:
    from paddle_llm.training.trainers.pretrain_trainer import PretrainTrainer


@dataclass(frozen=True)
class Rollback:
    """A step that was not finite.

    Attributes:
        step: Number of the step, 1 for the first.
        first_sample: First sample of its global batch in the global order.
        last_sample: Last sample of its global batch.
        problem: What was not finite, with the names of the samples.
    """

    step: int
    first_sample: int
    last_sample: int
    problem: str


class RollbackRequested(Exception):
    """Raised on every rank, between backward and update, if the training must go back to a checkpoint.

    Attributes:
        rollback: The step that was not finite.
    """

    def __init__(self, rollback: Rollback):
        self.rollback = rollback
        super().__init__(rollback.problem)


def train_with_rollbacks(
    build: Callable[[Path | None], PretrainTrainer], start: Path | None, first: list[PretrainTrainer]
) -> PretrainTrainer:
    """Train, and go back to the newest checkpoint as often as the trainer requests it. Collective over all ranks.

    Args:
        build: Function from the checkpoint to resume from (None to start at the first step) to a new trainer.
        start: Checkpoint from which the training starts; None for the first step.
        first: List with the trainer to begin with. It is emptied, so that the memory of a trainer is free when the next
            one is built.

    Returns:
        The trainer that has completed the training.
    """
    trainer = first.pop()
    output = Path(trainer.args.output_dir)
    while True:
        trainer.nan_guard.rollbacks = on_first_rank(lambda: read_rollbacks(output))
        try:
            trainer.train(resume_from_checkpoint=start)
            return trainer
        except RollbackRequested as request:
            rollback = request.rollback
        start = _prepare(trainer, rollback, start)
        del trainer
        _free_memory()
        trainer = build(start)


def _prepare(trainer: PretrainTrainer, rollback: Rollback, before: Path | None) -> Path | None:
    """Record and report a rollback; return the checkpoint to resume from, None for the first step.

    Args:
        trainer: Trainer that has requested the rollback.
        rollback: The step that was not finite.
        before: Checkpoint from which that trainer started, which may be outside of the output folder.
    """
    from paddle_llm.checkpoint.training_state.verification import choose_verified

    output = Path(trainer.args.output_dir)
    elsewhere = before if before is not None and before.resolve().parent != output.resolve() else None

    def choose(damaged: Mapping[Path, str]) -> tuple[Path | None, list[str]]:
        newest, passed_over = newest_complete(output, damaged)
        if newest is None and elsewhere is not None:
            if elsewhere not in damaged:
                return elsewhere, passed_over
            passed_over.append(f"skipped checkpoint {elsewhere}: {damaged[elsewhere]}.")
        return newest, passed_over

    start, passed_over = choose_verified(choose, "full")
    if start is None and elsewhere is not None:  # the first step would be that of another training
        raise TrainingStopped(
            f"{rollback.problem} {' '.join(passed_over)} No other checkpoint of this training exists. Start a new training from "
            "another checkpoint."
        )

    def record() -> None:
        for line in passed_over:
            say(line)
        earlier = read_rollbacks(output)
        entries = [dataclasses.asdict(one) for one in (*earlier, rollback)]
        write_atomically(output / ROLLBACKS, json.dumps({"rollbacks": entries}, indent=1).encode())
        where = f"checkpoint {start}" if start else "the first step"
        count = f"{len(entries)} of at most {trainer.options.max_rollbacks}"
        say(f"{rollback.problem} Rollback {count}: the training continues from {where} and skips these samples.")

    on_first_rank(record)
    number = len(trainer.nan_guard.rollbacks) + 1
    trainer.log({"step": rollback.step, "rollback_to_step": step_of(start) if start else 0, "rollbacks": number})
    return start


def read_rollbacks(output: Path) -> list[Rollback]:
    """Return the rollbacks that are recorded in an output folder.

    Raises:
        UserError: If the file cannot be read.
    """
    file = output / ROLLBACKS
    return [Rollback(**entry) for entry in read_json_object(file)["rollbacks"]] if file.exists() else []


def _free_memory() -> None:
    """Free the memory of objects that refer to each other, on the host and on the device."""
    import paddle

    gc.collect()
    if paddle.device.get_device().startswith("gpu"):
        paddle.device.cuda.empty_cache()
