"""How long a training is in samples, and its data as one walk of that length."""

from __future__ import annotations

from paddle_llm.config.reader import Resolved
from paddle_llm.config.steps import report_counted_steps
from paddle_llm.core.console import say
from paddle_llm.data.epochs import ShuffledEpochs


def global_batch_of(args) -> int:
    """Samples per optimizer step, over all data ranks."""
    return args.per_device_train_batch_size * args.gradient_accumulation_steps * args.dataset_world_size


def report_length(resolved: Resolved, steps: int) -> None:
    """Report warm-up, schedule and intervals that do not fit the length of a training that was counted in epochs.

    Args:
        steps: optimizer steps of the whole training.
    """
    report_counted_steps(resolved.config, steps, resolved.origins, say)


def in_global_order(dataset, args):
    """The data set as one walk through the whole training; `args.max_steps` becomes the length of that walk."""
    batch = global_batch_of(args)
    if hasattr(dataset, "samples_per_epoch"):
        if args.max_steps <= 0:
            args.max_steps = len(dataset) // batch
        return dataset
    if args.max_steps <= 0:
        args.max_steps = int(args.num_train_epochs * len(dataset)) // batch
    return ShuffledEpochs(dataset, args.max_steps * batch, args.seed)
