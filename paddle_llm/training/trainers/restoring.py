"""Set the state of a trainer from a checkpoint of any layout. Those of version 0.2 and earlier: `old_checkpoints.py`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from paddle_llm.checkpoint.format.manifest import read_json
from paddle_llm.checkpoint.format.reader import Reader
from paddle_llm.checkpoint.format.state import decode
from paddle_llm.checkpoint.saving.protocol import random_file_name
from paddle_llm.checkpoint.training_state.local_weights import local_weights
from paddle_llm.checkpoint.training_state.optimizer_state import OptimizerState
from paddle_llm.checkpoint.training_state.restore import Restore
from paddle_llm.checkpoint.training_state.writers import gather_objects
from paddle_llm.core.console import say
from paddle_llm.core.errors import UserError
from paddle_llm.parallel.mesh import current_mesh
from paddle_llm.training.random_states import (
    has_dropout,
    restore_random_states,
    seed_random_states,
    states_of_description,
)
from paddle_llm.training.step.loss_scaling import restore_scaler
from paddle_llm.training.step.optimizer import restore_schedule

if TYPE_CHECKING:
    from paddle_llm.training.trainers.checkpointed_trainer import CheckpointedTrainer
    from paddle_llm.training.trainers.start import Start


def restore_training(trainer: CheckpointedTrainer, start: Start) -> None:
    """Restore weights, optimizer, schedule, loss scaler and callbacks, after fleet has wrapped network and optimizer.

    Args:
        trainer: Trainer that resumes.
        start: Checkpoint from which it resumes.

    Raises:
        UserError: If the checkpoint does not fit the network; nothing is changed.
    """
    with Reader(start.folder) as reader:
        restore = _checked(trainer, reader)
        restore.set_weights()
        restore.set_optimizer()
        for tensor_callback in trainer.tensor_callbacks:
            restore.restore_callback(tensor_callback)
    restore_schedule(trainer.lr_scheduler, start.state["scheduler"])
    if trainer.do_grad_scaling:
        restore_scaler(trainer.scaler, start.state["scaler"] or {})
    for callback in trainer.stateful_callbacks:
        if callback.state_name in start.state["callbacks"]:
            callback.restore(start.state["callbacks"][callback.state_name])
    if trainer.args.offload_optim:
        trainer._offload_optimizer()


def restore_weights(trainer: CheckpointedTrainer, folder: Path) -> None:
    """Restore only the weights of a checkpoint. Collective over all ranks."""
    with Reader(folder) as reader:
        _checked(trainer, reader).set_weights()


def restore_random(trainer: CheckpointedTrainer, start: Start) -> None:
    """Restore the random states of this rank; on another layout they begin with the seed and the step.

    Args:
        trainer: Trainer that resumes.
        start: Checkpoint from which it resumes.
    """
    if start.layout == trainer.layout and start.has_random_states:
        with Reader(start.folder) as reader:
            described = read_json(start.folder, random_file_name(trainer.args.process_index))
            restore_random_states(states_of_description(decode(described, reader.tensor)))
        return
    named = trainer.args.use_hybrid_parallel
    seed_random_states(trainer.layout, trainer.args.seed, named=named, step=start.step)
    if any(gather_objects(has_dropout(trainer.model))):
        say(
            "the layout has changed: dropout draws other values from here on than it would have on the layout of the "
            "checkpoint"
            if start.has_random_states
            else "the checkpoint was converted and has no random states: dropout draws other values from here on than it "
            "would have without the interruption"
        )


def _checked(trainer: CheckpointedTrainer, reader: Reader) -> Restore:
    """Return what restores this rank, after every rank has checked that the checkpoint fits its network."""
    restore = Restore(
        reader,
        trainer.model,
        local_weights(trainer.model, trainer.layout),
        OptimizerState(trainer.optimizer),
        current_mesh(trainer.layout).tensor,
        trained_only=trainer.saves_trained_only,
    )
    problem = next((one for one in gather_objects(restore.problem()) if one is not None), None)
    if problem is not None:
        raise UserError(f"{reader.folder} does not fit this training: {problem}. Use the original model and method.")
    return restore
