"""Checkpoints of a Trainer: complete or absent, and resumed bit for bit.

PaddleNLP (3.0.0b4) writes and reads the files of a checkpoint. This module decides when they get their final names and
which further files a checkpoint has.
"""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import paddle
import paddle.distributed as dist
from paddlenlp.trainer import Trainer, TrainerCallback

from paddle_llm.checkpoint import folder as checkpoints
from paddle_llm.checkpoint.output_lock import hold_output_folder, release_output_folder
from paddle_llm.config.layout import Layout
from paddle_llm.config.local_files.chat_templates import TrainingTemplate
from paddle_llm.core.artifacts import METER_STATE, TRAINER_STATE, TRAINING_ARGS
from paddle_llm.core.atomic_output import publish
from paddle_llm.core.errors import UserError
from paddle_llm.models.configuration.generation_settings import write_generation
from paddle_llm.parallel.process.first_rank import on_first_rank
from paddle_llm.parallel.zero.stage3 import ShardedWeights
from paddle_llm.training.callbacks import Stateful, priority_of
from paddle_llm.training.metrics.meter import Meter
from paddle_llm.training.random_states import random_states, restore_random_states

if TYPE_CHECKING:
    from paddlenlp.trainer import TrainerControl, TrainerState, TrainingArguments
    from paddlenlp.trainer.trainer_utils import TrainOutput

    from paddle_llm.models.protocols import LanguageModel

_RANDOM_STATES = "random_states"
# Keys of the network's configuration that a resumed training must find unchanged.
_NETWORK_KEYS = (
    "hidden_size",
    "num_hidden_layers",
    "intermediate_size",
    "num_attention_heads",
    "vocab_size",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "tie_word_embeddings",
    "rope_theta",
    "rope_scaling",
    "rope_scaling_type",
    "rope_scaling_factor",
    "rms_norm_eps",
    "layer_norm_epsilon",
    "layernorm_epsilon",
    "use_sliding_window",
    "sliding_window",
)


class CheckpointedTrainer(Trainer):
    """Trainer with atomic checkpoints; the base of `PretrainTrainer`.

    Attributes:
        layout: Layout of the job.
        meter: Metrics of the run, part of every checkpoint.
        settings: Record of the training's settings for its checkpoints; None if they are not recorded.
        generation_settings: Content of generation_config.json in every checkpoint.
        chat_template: Chat template of the training; None without one.
        sharded_weights: Sharded weights of stage 3; None in other stages.

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
    _resumed_from: Path | None = None
    _data_digest: str | None = None

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

    # --- resuming ----------------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: str | Path | None = None, ignore_keys_for_eval: Any = None) -> TrainOutput:
        """Train, from the start or from a checkpoint.

        Args:
            resume_from_checkpoint: Folder of a complete checkpoint; None to start at the first step.
            ignore_keys_for_eval: As in PaddleNLP's Trainer.

        Raises:
            UserError: If the checkpoint belongs to another layout, network or data set.
        """
        if resume_from_checkpoint is not None:
            checkpoints.check_layout(resume_from_checkpoint, self.layout, self.global_batch)
            checkpoints.check_identity(resume_from_checkpoint, self._identity())
            self._resumed_from = Path(resume_from_checkpoint)
            for callback in self.stateful_callbacks:
                file = self._state_file(self._resumed_from, callback.state_name)
                callback.restore(paddle.load(str(file), return_numpy=True))
            resume_from_checkpoint = str(resume_from_checkpoint)
        # A job has already locked the folder; a trainer that is used from Python has not.
        locked = on_first_rank(lambda: hold_output_folder(self.args.output_dir))
        try:
            # Accumulators are saved under generated names, which a second training in one process must count from zero.
            with paddle.utils.unique_name.guard():
                return super().train(resume_from_checkpoint, ignore_keys_for_eval)
        finally:
            if locked:
                release_output_folder()

    def check_resume(self, start: Path, changed: Iterable[str] = ()) -> None:
        """Check that a checkpoint belongs to this network and data, before anything is written.

        Args:
            start: Folder of the checkpoint.
            changed: Settings of the data that differ, for the message.

        Raises:
            UserError: If the network or the data differ.
        """
        checkpoints.check_identity(start, self._identity(), changed)

    def restore_meter(self) -> None:
        """Continue the current row of metrics, after PaddleNLP has read trainer_state.json. Collective over all ranks."""
        self.meter.step = self.state.global_step
        if self._resumed_from is None:
            return
        box: list[Any] = [None]
        if self.args.process_index == 0:
            box = [json.loads((self._resumed_from / METER_STATE).read_text())]
        if dist.get_world_size() > 1:
            dist.broadcast_object_list(box, src=0)
        self.meter.restore(box[0], self.state.global_step)

    def _identity(self) -> dict[str, Any]:
        """Return the properties that a resumed run and its checkpoint must share.

        Returns:
            The network's shape, digests of the first samples in their order, and a digest of the whole data (`rows`;
            None if the data set has no digest).
        """
        config = getattr(self.model, "config", None)
        if self._data_digest is None and hasattr(self.train_dataset, "digest"):
            self._data_digest = self.train_dataset.digest()
        first = [self.train_dataset[i]["input_ids"] for i in range(min(8, len(self.train_dataset)))]
        contents = [np.ascontiguousarray(ids).tobytes() for ids in first]
        samples = [hashlib.sha256(content).hexdigest()[:16] for content in contents]
        return {
            "model": {key: getattr(config, key, None) for key in _NETWORK_KEYS},
            "data": hashlib.sha256(b"".join(contents)).hexdigest(),
            "samples": samples,
            "rows": self._data_digest,
        }

    def _load_from_checkpoint(self, resume_from_checkpoint: str | None = None) -> None:
        with _damage_reported(resume_from_checkpoint):
            return super()._load_from_checkpoint(resume_from_checkpoint)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with _damage_reported(checkpoint):
            return super()._load_optimizer_and_scheduler(checkpoint)

    def _set_state_dict_in_model(self, state_dict: dict[str, Any]) -> None:
        super()._set_state_dict_in_model(state_dict)
        if self.sharded_weights is not None:
            self.sharded_weights.free_unused()

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Restore the random states; called by the loop before the first step of a resumed training.

        PaddleNLP's own method depends on the number of visible devices (see `random_states`). It is only used for
        checkpoints of earlier versions, which have no other file.
        """
        if checkpoint is None:
            return
        file = self._state_file(Path(checkpoint), _RANDOM_STATES)
        if file.exists():
            restore_random_states(paddle.load(str(file), return_numpy=True))
        else:
            super()._load_rng_state(checkpoint)

    # --- saving ------------------------------------------------------------------------------------------------

    def write_chat_template(self, folder: Path) -> None:
        """Write the chat template of the training to a folder; nothing if the training has none."""
        if self.chat_template is not None:
            self.chat_template.write(folder)

    def _save_checkpoint(self, model: paddle.nn.Layer, metrics: dict[str, float] | None = None) -> None:
        args, step = self.args, self.state.global_step
        output_dir = args.output_dir
        staging, final = checkpoints.staging_folder(output_dir, step), checkpoints.checkpoint_folder(output_dir, step)
        meter_state = self.meter.state()
        restore = {name: getattr(args, name) for name in ("output_dir", "output_signal_dir", "save_total_limit")}
        args.output_dir = args.output_signal_dir = str(staging)
        args.save_total_limit = None
        try:
            with self._whole_weights(keep=args.should_save_model_state):
                super()._save_checkpoint(model, metrics)
        except OSError as error:
            why = error.strerror or error
            raise UserError(
                f"{final} cannot be written: {why}. Free disk space or keep fewer checkpoints with --save_total_limit, then "
                "start again: the training continues from the newest complete checkpoint."
            ) from error
        finally:
            for name, value in restore.items():
                setattr(args, name, value)
        staged = staging / final.name
        if self.state.best_model_checkpoint == str(staged):
            self.state.best_model_checkpoint = str(final)
        for callback in self.stateful_callbacks:
            paddle.save(callback.state(), str(self._state_file(staged, callback.state_name)))
        paddle.save(random_states(), str(self._state_file(staged, _RANDOM_STATES)))
        if args.process_index == 0:
            self._correct_paths(staged, meter_state)
            write_generation(staged, self.generation_settings)
        _barrier()
        if args.process_index == 0:
            self._publish(staged, final)
        _barrier()
        if args.local_process_index == 0 and staged.exists():  # another machine, with its own disk
            self._publish(staged, final)
        _barrier()

    def _whole_weights(self, keep: bool = True) -> AbstractContextManager[None]:
        """Return a context in which this rank holds all weights of its part of the network, to save or set them."""
        return nullcontext() if self.sharded_weights is None else self.sharded_weights.whole(keep)

    def _state_file(self, folder: Path, name: str) -> Path:
        """Return the file of this rank's part of a state."""
        return folder / f"{name}_{self.args.process_index}.pdstate"

    def _correct_paths(self, staged: Path, meter_state: dict[str, Any]) -> None:
        """Write the files again that PaddleNLP wrote while `output_dir` was the temporary folder."""
        self.state.save_to_json(str(staged / TRAINER_STATE))
        paddle.save(self.args, str(staged / TRAINING_ARGS))
        (staged / METER_STATE).write_text(json.dumps(meter_state))

    def _publish(self, staged: Path, final: Path) -> None:
        step = self.state.global_step
        self.write_chat_template(staged)
        checkpoints.write_manifest(
            staged,
            step=step,
            layout=self.layout,
            global_batch=self.global_batch,
            identity=self._identity(),
            settings=self.settings,
        )
        publish(staged, final)
        staged.parent.rmdir()
        checkpoints.rotate(self.args.output_dir, self.args.save_total_limit, self.state.best_model_checkpoint)


@contextmanager
def _damage_reported(folder: str | Path | None) -> Iterator[None]:
    """Turn the errors that `paddle.load` raises for a damaged file into a message.

    Raises:
        UserError: If a file of the checkpoint cannot be read although its size is right.
    """
    try:
        yield
    except (ValueError, EOFError, pickle.UnpicklingError) as error:
        raise UserError(
            f"{folder}: a file of this checkpoint is damaged ({str(error).rstrip('.')}). Resume from an older one with "
            "--resume_from_checkpoint."
        ) from error


def _barrier() -> None:
    if dist.get_world_size() > 1:
        dist.barrier()
