"""The length of a training in samples, and its data as one sequence of that length."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from paddle_llm.config.reader import Resolved
from paddle_llm.config.steps import report_counted_steps
from paddle_llm.core.console import say
from paddle_llm.data.epochs import ShuffledEpochs

if TYPE_CHECKING:
    import paddle
    from paddlenlp.trainer import TrainingArguments


def global_batch_of(args: TrainingArguments) -> int:
    """Return the number of samples per optimizer step, over all data ranks."""
    return int(args.per_device_train_batch_size * args.gradient_accumulation_steps * args.dataset_world_size)


@dataclass(frozen=True)
class Position:
    """A point of the training from which steps and samples are counted: where it resumes, or its beginning.

    Attributes:
        step: Optimizer steps until this point.
        samples: Samples of the global order until this point.
    """

    step: int = 0
    samples: int = 0

    def samples_at(self, step: int, global_batch: int) -> int:
        """Return the number of samples of the global order that the steps up to `step` use."""
        return self.samples + (step - self.step) * global_batch

    def steps_of(self, samples: int, global_batch: int) -> int:
        """Return the number of steps for which a number of samples is sufficient."""
        return self.step + max(samples - self.samples, 0) // global_batch


def position_of(args: TrainingArguments) -> Position:
    """Return the point from which a job counts; the beginning unless `set_position` was called."""
    return getattr(args, "position", Position())


def set_position(args: TrainingArguments, position: Position) -> None:
    """Set the point from which a job counts, before its data is loaded."""
    args.position = position


def report_length(resolved: Resolved, steps: int) -> None:
    """Report warm-up, schedule and intervals that do not fit the length of a training whose steps were counted.

    Args:
        resolved: Configuration of the job.
        steps: Optimizer steps of the whole training.
    """
    report_counted_steps(resolved.config, steps, resolved.origins, say)


def in_global_order(dataset: paddle.io.Dataset, args: TrainingArguments) -> paddle.io.Dataset:
    """Return a data set as one sequence through the training, and set `args.max_steps` if it is not set.

    Args:
        dataset: Map-style data set. One with the attribute `samples_per_epoch` is in its global order already.
        args: Arguments of the training.
    """
    batch, position = global_batch_of(args), position_of(args)
    if hasattr(dataset, "samples_per_epoch"):
        if args.max_steps <= 0:
            args.max_steps = position.steps_of(len(dataset), batch)
        return dataset
    if args.max_steps <= 0:
        args.max_steps = position.steps_of(int(args.num_train_epochs * len(dataset)), batch)
    return ShuffledEpochs(dataset, position.samples_at(args.max_steps, batch), args.seed)
