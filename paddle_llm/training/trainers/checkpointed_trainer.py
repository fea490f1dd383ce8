"""Checkpoints of a Trainer: complete or absent, resumed bit for bit, on any layout.

PaddleNLP's Trainer (3.0.0b4) keeps the loop. The methods with which it saves and loads are replaced by those of
`checkpoint/training_state`; it reads `trainer_state.json` itself. Its own methods read checkpoints of version 0.2 and
earlier.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import paddle
import paddle.distributed as dist
from paddlenlp.trainer import Trainer, TrainerCallback

from paddle_llm import __version__
from paddle_llm.checkpoint import folder as checkpoints
from paddle_llm.checkpoint.format.manifest import Manifest, read_json
from paddle_llm.checkpoint.format.reader import Reader
from paddle_llm.checkpoint.format.state import decode
from paddle_llm.checkpoint.model_formats import PADDLENLP, write_config
from paddle_llm.checkpoint.output_lock import hold_output_folder, release_output_folder
from paddle_llm.checkpoint.training_state.collect import TensorState, owned_tensors
from paddle_llm.checkpoint.training_state.local_weights import local_weights
from paddle_llm.checkpoint.training_state.optimizer_state import OptimizerState
from paddle_llm.checkpoint.training_state.restore import Restore
from paddle_llm.checkpoint.training_state.save import Content, random_file_name, save_checkpoint, stage
from paddle_llm.checkpoint.training_state.verification import problem_on_any_rank
from paddle_llm.checkpoint.training_state.writers import SaveFailed, Writers, find_writers, gather_objects
from paddle_llm.config.layout import Layout
from paddle_llm.config.local_files.chat_templates import TrainingTemplate
from paddle_llm.core.artifacts import TRAINER_STATE
from paddle_llm.core.console import say
from paddle_llm.core.errors import UserError
from paddle_llm.models.configuration.generation_settings import write_generation
from paddle_llm.models.weights.full_weights import family_name
from paddle_llm.parallel.mesh import current_mesh
from paddle_llm.parallel.process.first_rank import on_first_rank
from paddle_llm.parallel.zero.stage3 import ShardedWeights
from paddle_llm.training.callbacks import Stateful, priority_of
from paddle_llm.training.epochs import Position, position_of, set_position
from paddle_llm.training.metrics.meter import Meter
from paddle_llm.training.random_states import (
    describe_states,
    has_dropout,
    random_states,
    restore_random_states,
    seed_random_states,
    states_of_description,
)
from paddle_llm.training.step.loss_scaling import restore_scaler, scaler_state
from paddle_llm.training.trainers import old_checkpoints
from paddle_llm.training.trainers.identity import describe_network, describe_samples
from paddle_llm.training.trainers.start import Start

if TYPE_CHECKING:
    from paddlenlp.trainer import TrainerControl, TrainerState, TrainingArguments
    from paddlenlp.trainer.trainer_utils import TrainOutput

    from paddle_llm.models.protocols import LanguageModel


class CheckpointedTrainer(Trainer):
    """Trainer with atomic checkpoints; the base of `PretrainTrainer`.

    Attributes:
        layout: Layout of the job.
        meter: Metrics of the run, part of every checkpoint.
        settings: Record of the training's settings for its checkpoints; None if they are not recorded.
        generation_settings: Content of generation_config.json in every checkpoint.
        chat_template: Chat template of the training; None without one.
        sharded_weights: Sharded weights of stage 3; None in other stages.
        saves_trained_only: Whether checkpoints omit frozen weights.
        continue_without_save: Whether the training continues if a checkpoint cannot be written.

    Args:
        *args: Arguments of PaddleNLP's Trainer.
        generation_settings: See above; by default empty.
        chat_template: See above.
        **kwargs: Arguments of PaddleNLP's Trainer.
    """

    layout: Layout
    meter: Meter
    # Attributes of PaddleNLP's Trainer.
    args: TrainingArguments
    state: TrainerState
    control: TrainerControl
    model: LanguageModel
    model_wrapped: paddle.nn.Layer
    optimizer: paddle.optimizer.Optimizer
    lr_scheduler: paddle.optimizer.lr.LRScheduler
    settings: dict[str, Any] | None = None
    sharded_weights: ShardedWeights | None = None
    saves_trained_only = False
    continue_without_save = False
    _start: Start | None = None
    _checked: Path | None = None
    _data_digest: str | None = None
    _writers: Writers | None = None

    def __init__(
        self,
        *args: Any,
        generation_settings: dict[str, Any] | None = None,
        chat_template: TrainingTemplate | None = None,
        **kwargs: Any,
    ):
        self.generation_settings = generation_settings or {}
        self.chat_template = chat_template
        super().__init__(*args, **kwargs)

    # --- callbacks ---------------------------------------------------------------------------------------------

    def add_callback(self, callback: TrainerCallback | type[TrainerCallback]) -> None:
        """Add a callback after all others whose priority is not higher (see `training/callbacks.py`).

        Args:
            callback: Callback or its class.
        """
        super().add_callback(callback)
        self.callback_handler.callbacks.sort(key=priority_of)

    @property
    def stateful_callbacks(self) -> list[Stateful]:
        """Callbacks whose state is part of a checkpoint, in the order in which they are called."""
        return [callback for callback in self.callback_handler.callbacks if isinstance(callback, Stateful)]

    @property
    def _tensor_callbacks(self) -> list[TensorState]:
        return [callback for callback in self.callback_handler.callbacks if isinstance(callback, TensorState)]

    # --- resuming ----------------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: str | Path | None = None, ignore_keys_for_eval: Any = None) -> TrainOutput:
        """Train, from the start or from a checkpoint.

        Args:
            resume_from_checkpoint: Folder of a complete checkpoint; None to start at the first step.
            ignore_keys_for_eval: As in PaddleNLP's Trainer.

        Raises:
            UserError: If the checkpoint is damaged, or belongs to another network or data set; or to another layout, if it
                is of version 0.2 or earlier.
        """
        set_position(self.args, Position())
        if resume_from_checkpoint is not None:
            self._open_start(Path(resume_from_checkpoint))
            resume_from_checkpoint = str(resume_from_checkpoint)
        # A job has already locked the folder; a trainer that is used from Python has not.
        locked = on_first_rank(lambda: hold_output_folder(self.args.output_dir))
        try:
            # An old checkpoint has generated names, which a second training in one process must count from zero.
            with paddle.utils.unique_name.guard():
                return super().train(resume_from_checkpoint, ignore_keys_for_eval)
        finally:
            if locked:
                release_output_folder()

    def _open_start(self, folder: Path) -> None:
        """Check a checkpoint before anything is changed, and count steps and samples from it."""
        if self._checked != folder:  # a job has checked it before it built the trainer
            problem = None if checkpoints.is_old(folder) else problem_on_any_rank(folder, "full")
            if problem is not None:
                raise UserError(f"{folder} is damaged: {problem}. Use another checkpoint.")
            for line in checkpoints.check_layout(folder, self.layout, self.global_batch):
                say(line)
            self.check_resume(folder)
        self._start = Start.of(folder)
        set_position(self.args, self._start.position)
        if self._start.is_old:
            old_checkpoints.restore_callbacks(folder, self.stateful_callbacks, self.args.process_index)

    def check_resume(self, start: Path, changed: Iterable[str] = ()) -> None:
        """Check that a checkpoint belongs to this network and data, before anything is written. Collective over all ranks.

        Args:
            start: Folder of the checkpoint.
            changed: Settings of the data that differ, for the message.

        Raises:
            UserError: If the network or the data differ.
        """
        checkpoints.check_identity(start, self._identity(old=checkpoints.is_old(start)), changed)
        self._checked = start

    def restore_meter(self) -> None:
        """Continue the current row of metrics, after PaddleNLP has read trainer_state.json."""
        self.meter.step = self.state.global_step
        if self._start is not None:
            mesh = current_mesh(self.layout)
            same = self._start.layout == self.layout
            holds = None if same else mesh.data_rank == 0
            self.meter.restore(self._start.meter(), self.state.global_step, holds_all=holds)

    def _identity(self, old: bool = False) -> dict[str, Any]:
        """Return the properties that a resumed run and its checkpoint must share.

        Args:
            old: Whether they are compared with a checkpoint of version 0.2 or earlier.

        Returns:
            The network's shape, digests of the first samples in their order, and a digest of the whole data (`rows`;
            None if the data set has no digest).
        """
        if self._data_digest is None and hasattr(self.train_dataset, "digest"):
            self._data_digest = self.train_dataset.digest()
        network = describe_network(self.model, padded=old)
        return {"model": network, **describe_samples(self.train_dataset), "rows": self._data_digest}

    def _load_from_checkpoint(self, resume_from_checkpoint: str | None = None) -> None:
        """Load the weights of an old checkpoint, which fleet then broadcasts. Others are read after fleet has."""
        if self._start is not None and self._start.is_old:
            with old_checkpoints.reading(self, self._start.folder):
                super()._load_from_checkpoint(resume_from_checkpoint)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Load everything but the random states, after fleet has wrapped network and optimizer."""
        OptimizerState(self.optimizer)  # raises for an optimizer whose states cannot be saved
        if self._start is None or checkpoint is None:
            return
        if self._start.is_old:
            with old_checkpoints.reading(self, self._start.folder):
                super()._load_optimizer_and_scheduler(checkpoint)
            OptimizerState(self.optimizer).create_loaded(self.model.parameters())
            return
        with Reader(self._start.folder) as reader:
            restore = self._checked_restore(reader)
            restore.set_weights()
            restore.set_optimizer()
            for tensor_callback in self._tensor_callbacks:
                restore.restore_callback(tensor_callback)
        state = self._start.state
        self.lr_scheduler.set_state_dict(state["scheduler"])
        if self.do_grad_scaling:
            restore_scaler(self.scaler, state["scaler"] or {})
        for callback in self.stateful_callbacks:
            if callback.state_name in state["callbacks"]:
                callback.restore(state["callbacks"][callback.state_name])
        if self.args.offload_optim:
            self._offload_optimizer()

    def _checked_restore(self, reader: Reader) -> Restore:
        """Return what restores this rank, after every rank has checked that the checkpoint fits its network."""
        restore = Restore(
            reader,
            self.model,
            local_weights(self.model, self.layout),
            OptimizerState(self.optimizer),
            current_mesh(self.layout).tensor,
            trained_only=self.saves_trained_only,
        )
        problem = next((one for one in gather_objects(restore.problem()) if one is not None), None)
        if problem is not None:
            raise UserError(
                f"{reader.folder} does not fit this training: {problem}. Use the original model and method."
            )
        return restore

    def _set_state_dict_in_model(self, state_dict: dict[str, Any]) -> None:
        super()._set_state_dict_in_model(state_dict)
        if self.sharded_weights is not None:
            self.sharded_weights.free_unused()

    def load_best(self) -> None:
        """Set the weights of the best checkpoint at the end of a training, if that was requested. Collective over all ranks.

        PaddleNLP would look for its own files and skip it.
        """
        best = self.state.best_model_checkpoint
        if not self.args.load_best_model_at_end or best is None:
            return
        if dist.get_world_size() > 1:
            dist.barrier()
        if checkpoints.is_old(best):
            with old_checkpoints.reading(self, Path(best)):
                old_checkpoints.set_weights(self, Path(best))
            return
        with Reader(best) as reader:
            self._checked_restore(reader).set_weights()

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Restore the random states; called by the loop before the first step of a resumed training."""
        if checkpoint is None or self._start is None:
            return
        if self._start.is_old:
            with old_checkpoints.reading(self, self._start.folder):
                if not old_checkpoints.restore_random(self._start.folder, self.args.process_index):
                    super()._load_rng_state(checkpoint)
        elif self._start.layout == self.layout and self._start.has_random_states:
            with Reader(self._start.folder) as reader:
                described = read_json(self._start.folder, random_file_name(self.args.process_index))
                restore_random_states(states_of_description(decode(described, reader.tensor)))
        else:
            named = self.args.use_hybrid_parallel
            seed_random_states(self.layout, self.args.seed, named=named, step=self._start.step)
            if any(gather_objects(has_dropout(self.model))):
                say(
                    "the layout has changed: dropout draws other values from here on than it would have on the layout of the "
                    "checkpoint"
                    if self._start.has_random_states
                    else "the checkpoint was converted and has no random states: dropout draws other values from here on than it "
                    "would have without the interruption"
                )

    # --- saving ------------------------------------------------------------------------------------------------

    def write_chat_template(self, folder: Path) -> None:
        """Write the chat template of the training to a folder; nothing if the training has none."""
        if self.chat_template is not None:
            self.chat_template.write(folder)

    def _save_checkpoint(self, model: paddle.nn.Layer, metrics: dict[str, float] | None = None) -> None:
        best = self.state.best_metric, self.state.best_model_checkpoint
        try:
            self._write_checkpoint(metrics)
        except SaveFailed as error:
            if not self.continue_without_save:
                raise
            self.state.best_metric, self.state.best_model_checkpoint = best
            say(f"{error} The training continues without it (--save_failure continue).")

    def _write_checkpoint(self, metrics: dict[str, float] | None) -> None:
        """Write a checkpoint of this step. Collective over all ranks."""
        output, step = Path(self.args.output_dir), self.state.global_step
        staged, final = checkpoints.staging_folder(output, step), checkpoints.checkpoint_folder(output, step)
        self._compare_with_best(metrics, final)
        meter = self.meter.state()
        callbacks = {callback.state_name: callback.state() for callback in self.stateful_callbacks}
        if self._writers is None:
            self._writers = find_writers(self.layout, staged)
        else:
            stage(staged, self._writers)
        state = {
            "step": step,
            "consumed_samples": position_of(self.args).samples_at(step, self.global_batch),
            "scheduler": self.lr_scheduler.state_dict(),
            "scaler": scaler_state(self.scaler) if self.do_grad_scaling else None,
            "meter": meter,
            "callbacks": callbacks,
        }
        weights = local_weights(self.model, self.layout)
        identity = self._identity() if self._writers.first_on_disk else None  # it may read the whole data
        layout, versions = dataclasses.asdict(self.layout), {"paddle_llm": __version__, "paddle": paddle.__version__}
        manifest = Manifest(step, layout, self.global_batch, identity, self.settings, versions)
        written = save_checkpoint(
            staged,
            final,
            self._writers,
            owned_tensors(
                self.model,
                weights,
                OptimizerState(self.optimizer),
                self._writers,
                trained_only=self.saves_trained_only,
                callbacks=self._tensor_callbacks,
            ),
            Content(describe_states(random_states()), state, manifest, self._write_configuration),
        )
        if written is not None:
            checkpoints.rotate(output, self.args.save_total_limit, self.state.best_model_checkpoint)
        if dist.get_world_size() > 1:
            dist.barrier()

    def _compare_with_best(self, metrics: dict[str, float] | None, final: Path) -> None:
        """Record this checkpoint as the best one if its evaluation is."""
        name = self.args.metric_for_best_model
        if metrics is None or name is None:
            return
        value, best = metrics[name if name.startswith("eval_") else f"eval_{name}"], self.state.best_metric
        if best is None or (value > best if self.args.greater_is_better else value < best):
            self.state.best_metric = float(value)
            self.state.best_model_checkpoint = str(final)

    def _write_configuration(self, folder: Path) -> None:
        """Write what `export`, `generate` and the loop read beside the tensors."""
        self.state.save_to_json(str(folder / TRAINER_STATE))
        try:
            family = family_name(self.model)
        except KeyError:
            pass  # a network of a script, which no command reads
        else:
            write_config(PADDLENLP, self.model, family, folder, dtype="", has_padding_token=True)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(str(folder))
        write_generation(folder, self.generation_settings)
        self.write_chat_template(folder)
