"""Saves the state of a trainer: in its own process, or in a process beside it (`--async_save`).

A save in the background ends during a later step. The ranks learn of that together, with the scalars of a step, so that a
failure has the same effect on all of them.
"""

from __future__ import annotations

import dataclasses
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import paddle

from paddle_llm import __version__
from paddle_llm.checkpoint import folder as checkpoints
from paddle_llm.checkpoint.format.manifest import Manifest
from paddle_llm.checkpoint.format.state import encode
from paddle_llm.checkpoint.format.writer import LocalTensor
from paddle_llm.checkpoint.model_formats import PADDLENLP, write_config
from paddle_llm.checkpoint.saving.background import BackgroundWriter, Filled, Outcome
from paddle_llm.checkpoint.saving.protocol import Content, SaveFailed, save_checkpoint, stage
from paddle_llm.checkpoint.training_state.collect import owned_tensors
from paddle_llm.checkpoint.training_state.local_weights import local_weights
from paddle_llm.checkpoint.training_state.optimizer_state import OptimizerState
from paddle_llm.checkpoint.training_state.writers import Writers, find_writers, gather_objects
from paddle_llm.core.artifacts import TRAINER_STATE
from paddle_llm.core.console import say
from paddle_llm.models.configuration.generation_settings import write_generation
from paddle_llm.models.weights.full_weights import family_name
from paddle_llm.parallel.gloo.interface import own_host
from paddle_llm.training.epochs import position_of
from paddle_llm.training.random_states import describe_states, random_states
from paddle_llm.training.step.loss_scaling import scaler_state

if TYPE_CHECKING:
    from paddle_llm.training.trainers.checkpointed_trainer import CheckpointedTrainer

Best = tuple[float | None, str | None]  # metric and folder of the best checkpoint
_REMEDY_WHEN_LOST = "The newest complete checkpoint is unchanged. If memory ran out, use --async_save 0, which needs no copy of the state."


@dataclass(frozen=True)
class _Save:
    """A save that has begun.

    Attributes:
        content: What this rank writes beside tensors.
        began: When it began, by `time.monotonic`.
        best: The best checkpoint before it.
        blocking: Seconds for which the training was blocked.
    """

    content: Content
    began: float
    best: Best
    blocking: float = 0.0


class Saver:
    """Writes the checkpoints of a trainer. `save`, `settle` and `complete` are collective over all ranks.

    Args:
        trainer: The trainer.
    """

    def __init__(self, trainer: CheckpointedTrainer) -> None:
        self._trainer = trainer
        self._writers: Writers | None = None
        self._writers_of: Path | None = None
        self._background: BackgroundWriter | None = None
        self._pending: _Save | None = None

    def save(self, metrics: dict[str, float] | None) -> None:
        """Save the state after this step.

        Args:
            metrics: Metrics of the evaluation after this step; None without one.

        Raises:
            SaveFailed: If this checkpoint, or the one that was written in the background, cannot be written, and the training
                stops then; on all ranks.
        """
        trainer, began = self._trainer, time.monotonic()
        try:
            content, tensors = self._collect()
        except SaveFailed as error:
            self._fail(error)
            return
        filled, problem = self._fill(tensors, content.final) if trainer.saves_in_background else (None, None)
        self.complete()
        save = _Save(content, began, (trainer.state.best_metric, trainer.state.best_model_checkpoint))
        self.compare_with_best(metrics, content.final)
        content = replace(content, keep=trainer.args.save_total_limit, best=trainer.state.best_model_checkpoint)
        try:
            stage(content.staged, content.member, gather_objects, self._write_configuration, problem)
            if filled is None:
                nbytes = save_checkpoint(content, tensors, gather_objects)
                now = time.monotonic()
                self._report(replace(save, blocking=now - began), now, nbytes)
                return
        except SaveFailed as error:
            self._fail(error, save)
            return
        background = self._background_writer()
        background.start(gather_objects)
        background.submit(filled, content)
        self._pending = replace(save, blocking=time.monotonic() - began)

    def has_ended(self) -> bool:
        """Return whether a save in the background has ended on this rank."""
        return self._background is not None and self._background.has_ended()

    def settle(self) -> None:
        """Handle the end of the save in the background, after it has ended on one rank at least.

        Raises:
            SaveFailed: If it has failed and the training stops then; on all ranks.
        """
        if self._pending is not None:
            self._end(self._pending, self._background_writer().wait() if self.has_ended() else None)

    def complete(self) -> None:
        """Wait until the save in the background has ended.

        Raises:
            SaveFailed: If it has failed and the training stops then; on all ranks.
        """
        if self._pending is not None:
            self._end(self._pending, self._background_writer().wait())

    def close(self, *, at_once: bool) -> None:
        """End the process in the background. Not collective.

        Args:
            at_once: Whether a save in progress is given up; otherwise it is completed.
        """
        background, save = self._background, self._pending
        self._background = self._pending = None
        if background is None:
            return
        if at_once:
            background.kill()
            return
        if save is not None:
            outcome = background.wait()
            if outcome.problem is None:
                self._report(save, outcome.ended, outcome.nbytes)
            else:
                say(str(_error(save, outcome)))
        background.close()

    def _end(self, save: _Save, mine: Outcome | None) -> None:
        """Exchange the outcomes of all ranks, and report the save or fail."""
        background = self._background_writer()
        outcomes: list[Outcome | None] = gather_objects(mine)
        if not any(one is not None and one.problem and not one.is_lost for one in outcomes):
            # Saves end on all ranks in the same moment: all are written, or a process is lost and the others end with it.
            mine = mine or background.wait()
            outcomes = gather_objects(mine)
        self._pending = None
        failures = [one for one in outcomes if one is not None and one.problem]
        if not failures:
            assert mine is not None
            self._report(save, mine.ended, mine.nbytes)
            return
        failure = min(failures, key=lambda one: (one.is_lost, not one.is_own))
        if not failure.is_lost:  # `save_checkpoint` has ended on all ranks and has removed the staging folder
            if background.is_busy:
                background.wait()
        else:
            background.kill()
            gather_objects(None)  # nobody writes to the folder any more
            if save.content.member.first_on_disk:
                shutil.rmtree(save.content.staged, ignore_errors=True)
        self._fail(_error(save, failure), save)

    def _fail(self, error: SaveFailed, save: _Save | None = None) -> None:
        """Raise the error, or report it if the training continues without the checkpoint."""
        trainer = self._trainer
        if not trainer.continue_without_save:
            raise error
        if save is not None and trainer.state.best_model_checkpoint == str(save.content.final):
            trainer.state.best_metric, trainer.state.best_model_checkpoint = save.best
        say(f"{error} The training continues without it (--save_failure continue).")

    def _report(self, save: _Save, ended: float, nbytes: int) -> None:
        """Add a row to the metrics; the times are those of the first rank, which writes it."""
        self._trainer.log(
            {
                "step": save.content.manifest.step,
                "save_blocking_seconds": save.blocking,
                "save_seconds": ended - save.began,
                "save_bytes": nbytes,
            }
        )

    def _collect(self) -> tuple[Content, dict[str, LocalTensor]]:
        """Return what this rank writes: everything that the following steps change is in it or in the tensors."""
        trainer = self._trainer
        output, step = Path(trainer.args.output_dir), trainer.state.global_step
        staged = checkpoints.staging_folder(output, step)
        meter = trainer.meter.state()
        callbacks = {callback.state_name: callback.state() for callback in trainer.stateful_callbacks}
        if self._writers is None or self._writers_of != output:
            self._writers, self._writers_of = find_writers(trainer.layout, staged), output
        writers = self._writers
        state, arrays = encode(
            {
                "step": step,
                "consumed_samples": position_of(trainer.args).samples_at(step, trainer.global_batch),
                "scheduler": trainer.lr_scheduler.state_dict(),
                "scaler": scaler_state(trainer.scaler) if trainer.do_grad_scaling else None,
                "meter": meter,
                "callbacks": callbacks,
                "interrupted_evaluation": trainer.due_evaluation,
            },
            "state/job",
        )
        if arrays:
            raise TypeError(f"the state of the job has arrays: {', '.join(arrays)}")
        random, arrays = encode(describe_states(random_states()), f"state/random/{writers.rank:05}")
        tensors = dict(
            owned_tensors(
                trainer.model,
                local_weights(trainer.model, trainer.layout),
                OptimizerState(trainer.optimizer),
                writers,
                trained_only=trainer.saves_trained_only,
                callbacks=trainer.tensor_callbacks,
            )
        )
        tensors |= {key: LocalTensor.of(values) for key, values in arrays.items()}
        manifest = Manifest(
            step,
            dataclasses.asdict(trainer.layout),
            trainer.global_batch,
            trainer._identity().as_json(),
            trainer.settings,
            {"paddle_llm": __version__, "paddle": paddle.__version__},
        )
        final = checkpoints.checkpoint_folder(output, step)
        return Content(staged, final, writers.member, random, state, manifest), tensors

    def _fill(self, tensors: dict[str, LocalTensor], final: Path) -> tuple[Filled | None, str | None]:
        """Copy tensors to memory that the process in the background reads, or return why that is not possible."""
        try:
            return self._background_writer().fill(tensors), None
        except OSError as error:
            why = f"host memory for a copy of the state of this rank (--async_save): {error.strerror or error}"
            return None, f"{final} cannot be written: {why}."

    def _background_writer(self) -> BackgroundWriter:
        if self._background is None:
            self._background = BackgroundWriter(self._trainer.args.process_index, own_host())
        return self._background

    def compare_with_best(self, metrics: dict[str, float] | None, final: Path) -> None:
        """Record a checkpoint as the best one if its evaluation is.

        Args:
            metrics: Result of its evaluation; None without one.
            final: Folder of the checkpoint.
        """
        args, state = self._trainer.args, self._trainer.state
        name = args.metric_for_best_model
        if metrics is None or name is None:
            return
        value, best = metrics[name if name.startswith("eval_") else f"eval_{name}"], state.best_metric
        if best is None or (value > best if args.greater_is_better else value < best):
            state.best_metric, state.best_model_checkpoint = float(value), str(final)

    def _write_configuration(self, folder: Path) -> None:
        """Write what `export`, `generate` and the loop read beside the tensors."""
        trainer = self._trainer
        trainer.state.save_to_json(str(folder / TRAINER_STATE))
        try:
            family = family_name(trainer.model)
        except KeyError:
            pass  # a network of a script, which no command reads
        else:
            write_config(PADDLENLP, trainer.model, family, folder, dtype="", has_padding_token=True)
        if trainer.tokenizer is not None:
            trainer.tokenizer.save_pretrained(str(folder))
        write_generation(folder, trainer.generation_settings)
        trainer.write_chat_template(folder)


def _error(save: _Save, failure: Outcome) -> SaveFailed:
    if not failure.is_lost:
        return SaveFailed(str(failure.problem))
    return SaveFailed(f"{save.content.final} cannot be written: {failure.problem}. {_REMEDY_WHEN_LOST}")
