"""Short trainings that continue on another layout, and what their ranks and checkpoints contain."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from paddle_llm.checkpoint.format.reader import Reader
from paddle_llm.config.layout import Layout
from paddle_llm.rehearse.ranks import run_ranks
from tests.helpers.pretrain_jobs import Toy, config, make_trainer, rows

BATCH = 8
FIELDS = {
    "logging_steps": 1,
    "save_strategy": "no",
    "do_eval": False,
    "learning_rate": 1e-3,
    "adam_epsilon": 1e-4,
    "lr_scheduler_type": "constant",
}


@dataclass(frozen=True)
class Part:
    """A part of a training.

    Attributes:
        layout: Layout of its ranks.
        last: Last step.
        start: Checkpoint from which it resumes; None for the first step.
        changes: Fields of RunConfig that differ.
    """

    layout: Layout
    last: int
    start: Path | None = None
    changes: tuple[tuple[str, Any], ...] = ()


class Recorded(Toy):
    """Toy samples that record which of them are read."""

    def __init__(self, length: int) -> None:
        super().__init__(length)
        self.read: list[int] = []
        self.recording = False

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        if self.recording:
            self.read.append(index)
        return super().__getitem__(index)


def train_part(folder: Path, part: Part) -> list[int]:
    """Train a part on one rank; return the samples that it has read in training.

    The state right after loading is saved to `folder`/loaded, and the state at the end to `folder`/output.
    """
    from paddlenlp.trainer import TrainerCallback

    from paddle_llm.parallel.process.start import start_process

    class Saver(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            data.recording = True  # the loader reads it in another thread
            trainer.train_dataset = Toy(1000)  # a checkpoint records a digest of the first samples

        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == first and part.start is not None:
                _save(trainer, folder / "loaded")

        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == part.last:
                control.should_save = control.should_training_stop = True

    layout = part.layout
    start_process("cpu", layout.world_size)
    accumulation = {"gradient_accumulation_steps": BATCH // layout.data_world_size}
    if layout.virtual_stages > 1:
        accumulation["virtual_pp_degree"] = layout.virtual_stages
    fields = FIELDS | accumulation | {"sequence_parallel": layout.sequence_parallel} | dict(part.changes)
    data = Recorded(1000)
    trainer = make_trainer(config(folder, **({"max_steps": part.last} | fields)), layout, train=data)
    first = 0 if part.start is None else int(part.start.name.partition("-")[2])
    trainer.add_callback(Saver())
    trainer.train(part.start)
    return data.read


def _save(trainer, folder: Path) -> None:
    output, trainer.args.output_dir = trainer.args.output_dir, str(folder)
    try:
        trainer._save_checkpoint(trainer.model)
    finally:
        trainer.args.output_dir = output


def run_part(folder: Path, part: Part) -> list[list[int]]:
    """Train a part on all ranks; return the samples that each has read."""
    return run_ranks(train_part, part.layout.world_size, folder, part)


def different_tensors(one: Path, other: Path) -> list[str]:
    """Return the keys of tensors that differ between two checkpoints of the same step, in any bit."""
    with Reader(one) as first, Reader(other) as second:
        keys = {key for key in (*first.keys(), *second.keys()) if not key.startswith("state/random/")}
        return sorted(key for key in keys if not _are_equal(key, first, second))


def _are_equal(key: str, first: Reader, second: Reader) -> bool:
    if key not in first.index.tensors or key not in second.index.tensors:
        return False
    values = [_unpadded(key, reader) for reader in (first, second)]
    return values[0].dtype == values[1].dtype and values[0].tobytes() == values[1].tobytes()


def _unpadded(key: str, reader: Reader) -> np.ndarray:
    entry, values = reader.index.tensors[key], reader.tensor(key)
    if entry.unpadded is None:
        return values
    return np.ascontiguousarray(np.take(values, range(entry.unpadded), entry.parts[0].axis))


def losses(folder: Path) -> dict[int, float]:
    """Return the loss of each step in `folder`/output."""
    return {row["step"]: row["loss"] for row in rows(folder / "output") if "loss" in row}
