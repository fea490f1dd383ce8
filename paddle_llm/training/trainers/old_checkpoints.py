"""Resume from checkpoints of version 0.2 and earlier with PaddleNLP's own methods, on the layout that wrote them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import paddle
from paddlenlp.trainer import Trainer
from paddlenlp.trainer.unified_checkpoint import UnifiedCheckpointHandler
from paddlenlp.transformers.model_utils import _add_variant

from paddle_llm.checkpoint.old_format import restricted_pickles
from paddle_llm.checkpoint.training_state.optimizer_state import OptimizerState
from paddle_llm.core.artifacts import PDPARAMS
from paddle_llm.training.callbacks import Stateful
from paddle_llm.training.random_states import restore_random_states

if TYPE_CHECKING:
    from paddle_llm.training.trainers.checkpointed_trainer import CheckpointedTrainer

_RANDOM_STATES = "random_states"


@contextmanager
def reading(trainer: CheckpointedTrainer, folder: Path) -> Iterator[None]:
    """Let PaddleNLP's methods read an old checkpoint, of its unified format, too, and run no code from its files.

    Args:
        trainer: The trainer.
        folder: The checkpoint.

    Raises:
        UserError: If a file is damaged or contains something else than tensors.
    """
    unified = bool(trainer.is_unified_checkpoint(str(folder)))
    trainer.args.unified_checkpoint = unified
    if unified:
        trainer.unified_checkpoint_handler = UnifiedCheckpointHandler(trainer.args)
    try:
        with restricted_pickles(folder):
            yield
    finally:
        trainer.args.unified_checkpoint = False


def load_weights(trainer: CheckpointedTrainer, folder: Path) -> None:
    """Load the weights, which fleet then broadcasts, before it wraps the network."""
    with reading(trainer, folder):
        Trainer._load_from_checkpoint(trainer, str(folder))


def load_optimizer(trainer: CheckpointedTrainer, folder: Path) -> None:
    """Load the optimizer, the schedule and the loss scaler, after fleet has wrapped the optimizer."""
    with reading(trainer, folder):
        Trainer._load_optimizer_and_scheduler(trainer, str(folder))
    OptimizerState(trainer.optimizer).create_loaded(trainer.model.parameters())


def load_random(trainer: CheckpointedTrainer, folder: Path) -> None:
    """Load the random states of this rank."""
    with reading(trainer, folder):
        if not _restore_random(folder, trainer.args.process_index):
            Trainer._load_rng_state(trainer, str(folder))


def load_best_weights(trainer: CheckpointedTrainer, folder: Path) -> None:
    """Set the weights of the network at the end of a training. Collective over all ranks."""
    with reading(trainer, folder):
        _set_weights(trainer, folder)


def restore_callbacks(folder: Path, callbacks: Iterable[Stateful], rank: int) -> None:
    """Let callbacks continue from their states."""
    with restricted_pickles(folder):
        for callback in callbacks:
            callback.restore(paddle.load(str(_state_file(folder, callback.state_name, rank)), return_numpy=True))


def _restore_random(folder: Path, rank: int) -> bool:
    """Restore the random states of a rank; return whether the checkpoint has them, which those of version 0.1 lack."""
    file = _state_file(folder, _RANDOM_STATES, rank)
    if not file.exists():
        return False
    restore_random_states(paddle.load(str(file), return_numpy=True))
    return True


def _set_weights(trainer: CheckpointedTrainer, folder: Path) -> None:
    if trainer.args.unified_checkpoint:
        Trainer._load_from_checkpoint(trainer, str(folder))
        return
    file = folder / _add_variant(PDPARAMS, trainer.args.weight_name_suffix)
    whole = nullcontext() if trainer.sharded_weights is None else trainer.sharded_weights.whole()
    with whole:
        trainer._set_state_dict_in_model(paddle.load(str(file), return_numpy=True))


def _state_file(folder: Path, name: str, rank: int) -> Path:
    return folder / f"{name}_{rank}.pdstate"
