"""Checkpoints of a Trainer: complete or absent, resumed bit for bit, on any layout.

PaddleNLP's Trainer (3.0.0b4) keeps the loop and reads `trainer_state.json` itself. The methods with which it saves and loads are
replaced by those of `saving.py` and `restoring.py`; `old_checkpoints.py` uses its own for checkpoints of version 0.2 and earlier.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import paddle
import paddle.distributed as dist
from paddlenlp.trainer import Trainer, TrainerCallback

from paddle_llm.checkpoint import folder as checkpoints
from paddle_llm.checkpoint.identity import RunIdentity, check_identity, has_old_data
from paddle_llm.checkpoint.output_lock import hold_output_folder, release_output_folder
from paddle_llm.checkpoint.training_state.collect import TensorState
from paddle_llm.checkpoint.training_state.optimizer_state import OptimizerState
from paddle_llm.checkpoint.training_state.verification import problem_on_any_rank
from paddle_llm.config.layout import Layout
from paddle_llm.config.local_files.chat_templates import TrainingTemplate
from paddle_llm.core.console import say
from paddle_llm.core.errors import UserError, was_interrupted
from paddle_llm.data.identity import DataIdentity
from paddle_llm.parallel.mesh import current_mesh
from paddle_llm.parallel.process.first_rank import on_first_rank
from paddle_llm.parallel.zero.stage3 import ShardedWeights
from paddle_llm.training.callbacks import Stateful, priority_of
from paddle_llm.training.epochs import Position, set_position
from paddle_llm.training.metrics.meter import Meter
from paddle_llm.training.step.optimizer import apply_schedule
from paddle_llm.training.trainers import old_checkpoints
from paddle_llm.training.trainers.identity import describe_data, describe_network, describe_old_data
from paddle_llm.training.trainers.restoring import restore_random, restore_training, restore_weights
from paddle_llm.training.trainers.saving import Saver
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
        tokenizer_fingerprint: Fingerprint of the tokenizer of the data; None if it is not known.
        sharded_weights: Sharded weights of stage 3; None in other stages.
        saves_trained_only: Whether checkpoints omit frozen weights.
        continue_without_save: Whether the training continues if a checkpoint cannot be written.
        saves_in_background: Whether another process writes checkpoints while the training goes on.
        saver: Writer of checkpoints.
        due_evaluation: Evaluation after the last step that a stop has interrupted: whether it selects the best checkpoint
            (`selects_best`); None without one.

    Args:
        *args: Arguments of PaddleNLP's Trainer.
        generation_settings: See above; by default empty.
        chat_template: See above.
        tokenizer_fingerprint: See above.
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
    saves_in_background = False
    due_evaluation: dict[str, bool] | None = None
    _start: Start | None = None
    _checked: Path | None = None
    _data_identity: DataIdentity | None = None
    _load_seconds = 0.0

    def __init__(
        self,
        *args: Any,
        generation_settings: dict[str, Any] | None = None,
        chat_template: TrainingTemplate | None = None,
        tokenizer_fingerprint: str | None = None,
        **kwargs: Any,
    ):
        self.generation_settings = generation_settings or {}
        self.chat_template, self.tokenizer_fingerprint = chat_template, tokenizer_fingerprint
        self.saver = Saver(self)
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
    def tensor_callbacks(self) -> list[TensorState]:
        """Callbacks whose values per weight are part of a checkpoint."""
        return [callback for callback in self.callback_handler.callbacks if isinstance(callback, TensorState)]

    @property
    def start(self) -> Path | None:
        """Checkpoint from which this training resumes; None if it starts at the first step."""
        return None if self._start is None else self._start.folder

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
        self.due_evaluation = None
        if resume_from_checkpoint is not None:
            self._open_start(Path(resume_from_checkpoint))
            resume_from_checkpoint = str(resume_from_checkpoint)
        # A job has already locked the folder; a trainer that is used from Python has not.
        locked = on_first_rank(lambda: hold_output_folder(self.args.output_dir))
        try:
            # An old checkpoint has generated names, which a second training in one process must count from zero.
            with paddle.utils.unique_name.guard():
                return super().train(resume_from_checkpoint, ignore_keys_for_eval)
        except BaseException as error:
            if was_interrupted(error):
                self.saver.close(at_once=True)
            raise
        finally:
            self.saver.close(at_once=False)
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
        self.due_evaluation = self._start.state.get("interrupted_evaluation")
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
        old_data = describe_old_data(self.train_dataset) if has_old_data(start) else {}
        for line in check_identity(start, self._identity(checkpoints.is_old(start), old_data), changed):
            say(line)
        self._checked = start

    def restore_meter(self) -> None:
        """Continue the current row of metrics, after PaddleNLP has read trainer_state.json."""
        self.meter.step = self.state.global_step
        if self._start is not None:
            mesh = current_mesh(self.layout)
            same = self._start.layout == self.layout
            holds = None if same else mesh.data_rank == 0
            self.meter.restore(self._start.meter(), self.state.global_step, holds_all=holds)

    def _identity(self, old: bool = False, old_data: dict[str, Any] | None = None) -> RunIdentity:
        """Return the properties that a resumed run and its checkpoint must share.

        Args:
            old: Whether they are compared with a checkpoint of version 0.2 or earlier.
            old_data: Digests of the data that a checkpoint without an identity of all data has.
        """
        if self._data_identity is None:  # it may read the whole data
            self._data_identity = describe_data(self.train_dataset, self.tokenizer_fingerprint)
        return RunIdentity(describe_network(self.model, padded=old), self._data_identity, old_data or {})

    def _load_from_checkpoint(self, resume_from_checkpoint: str | None = None) -> None:
        """Load the weights of an old checkpoint, which fleet then broadcasts. Others are read after fleet has."""
        if self._start is not None and self._start.is_old:
            with self._loading():
                old_checkpoints.load_weights(self, self._start.folder)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Load everything but the random states, after fleet has wrapped network and optimizer."""
        OptimizerState(self.optimizer)  # raises for an optimizer whose states cannot be saved
        if self._start is None or checkpoint is None:
            return
        with self._loading():
            if self._start.is_old:
                old_checkpoints.load_optimizer(self, self._start.folder)
                apply_schedule(self.lr_scheduler)
            else:
                restore_training(self, self._start)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Restore the random states; called by the loop before the first step of a resumed training."""
        if checkpoint is None or self._start is None:
            return
        with self._loading():
            if self._start.is_old:
                old_checkpoints.load_random(self, self._start.folder)
            else:
                restore_random(self, self._start)
        self.log({"step": self._start.step, "load_seconds": self._load_seconds})

    @contextmanager
    def _loading(self) -> Iterator[None]:
        """Add the time of the body to that of loading."""
        began = time.monotonic()
        yield
        self._load_seconds += time.monotonic() - began

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
            old_checkpoints.load_best_weights(self, Path(best))
        else:
            restore_weights(self, Path(best))

    # --- saving ------------------------------------------------------------------------------------------------

    def write_chat_template(self, folder: Path) -> None:
        """Write the chat template of the training to a folder; nothing if the training has none."""
        if self.chat_template is not None:
            self.chat_template.write(folder)

    def _save_checkpoint(self, model: paddle.nn.Layer, metrics: dict[str, float] | None = None) -> None:
        self.saver.save(metrics)
