"""Checkpoints of a Trainer: complete or absent, in the layout's terms, continued bit for bit. Upstream (paddlenlp 3.0.0b4)
writes and reads the files of its own; here is when they get their names, and what is kept beside them."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import paddle
import paddle.distributed as dist
from paddlenlp.trainer import Trainer

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
from paddle_llm.training.metrics.meter import Meter
from paddle_llm.training.random_states import random_states, restore_random_states

_RANDOM_STATES = "random_states"
# Of the network's configuration: what a resumed training must find as it was.
_NETWORK = (
    *(
        "hidden_size",
        "num_hidden_layers",
        "intermediate_size",
        "num_attention_heads",
        "vocab_size",
        "num_key_value_heads",
    ),
    *(
        "head_dim",
        "hidden_act",
        "tie_word_embeddings",
        "rope_theta",
        "rope_scaling",
        "rope_scaling_type",
        "rope_scaling_factor",
    ),
    *("rms_norm_eps", "layer_norm_epsilon", "layernorm_epsilon", "use_sliding_window", "sliding_window"),
)


@contextmanager
def _readable(folder: str | Path | None) -> Iterator[None]:
    """Turn what `paddle.load` raises for a damaged file into a message.

    Raises:
        UserError: If a file of the checkpoint has the right size and cannot be read.
    """
    try:
        yield
    except (ValueError, EOFError, pickle.UnpicklingError) as error:
        raise UserError(
            f"{folder}: a file of this checkpoint is damaged: {error} Name an older one with --resume_from_checkpoint."
        ) from error


class Stateful(Protocol):
    """Something beside network and optimizer that a resumed training must find as it was. Each rank has its own."""

    def state(self) -> dict[str, Any]: ...

    def restore(self, state: dict[str, Any]) -> None: ...


class CheckpointedTrainer(Trainer):
    """What `PretrainTrainer` is built on.

    Attributes:
        stateful: name -> what is saved and restored beside network and optimizer.
        settings: record of the training's settings for its checkpoints; None: not recorded.
        generation_settings: the content of generation_config.json in every checkpoint.
        chat_template: Chat template of the training; None without one.
    """

    layout: Layout
    meter: Meter
    settings: dict[str, Any] | None = None
    sharded_weights: ShardedWeights | None = None
    chat_template: TrainingTemplate | None = None
    _resumed_from: Path | None = None
    _rows: str | None = None

    def __init__(self, *args, **kwargs):
        self.stateful: dict[str, Stateful] = {}
        self.generation_settings: dict[str, Any] = {}
        super().__init__(*args, **kwargs)

    def _whole_weights(self, keep: bool = True):
        """A context in which this rank has all weights of its part of the network, to save or set them."""
        return nullcontext() if self.sharded_weights is None else self.sharded_weights.whole(keep)

    def train(self, resume_from_checkpoint=None, ignore_keys_for_eval=None):
        if resume_from_checkpoint is not None:
            checkpoints.check_layout(resume_from_checkpoint, self.layout, self.global_batch)
            checkpoints.check_identity(resume_from_checkpoint, self._identity())
            self._resumed_from = Path(resume_from_checkpoint)
            for name, what in self.stateful.items():
                what.restore(paddle.load(str(self._file_of(self._resumed_from, name)), return_numpy=True))
            resume_from_checkpoint = str(resume_from_checkpoint)
        locked = on_first_rank(
            lambda: hold_output_folder(self.args.output_dir)
        )  # a notebook's; a job has locked it before
        try:
            # Accumulators are saved under generated names: a second training in one process must count from zero again.
            with paddle.utils.unique_name.guard():
                return super().train(resume_from_checkpoint, ignore_keys_for_eval)
        finally:
            if locked:
                release_output_folder()

    def _load_from_checkpoint(self, resume_from_checkpoint=None):
        with _readable(resume_from_checkpoint):
            return super()._load_from_checkpoint(resume_from_checkpoint)

    def _load_optimizer_and_scheduler(self, checkpoint):
        with _readable(checkpoint):
            return super()._load_optimizer_and_scheduler(checkpoint)

    def _set_state_dict_in_model(self, state_dict):
        super()._set_state_dict_in_model(state_dict)
        if self.sharded_weights is not None:
            self.sharded_weights.settle()

    def _save_checkpoint(self, model, metrics=None):
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
                f"{final} cannot be written: {why}. Make room or keep fewer with --save_total_limit, and start again: the "
                "training continues from the newest complete checkpoint."
            ) from error
        finally:
            for name, value in restore.items():
                setattr(args, name, value)
        staged = staging / final.name
        if self.state.best_model_checkpoint == str(staged):
            self.state.best_model_checkpoint = str(final)
        for name, what in self.stateful.items():
            paddle.save(what.state(), str(self._file_of(staged, name)))
        paddle.save(random_states(), str(self._file_of(staged, _RANDOM_STATES)))
        if args.process_index == 0:
            self._correct_paths(staged, meter_state)
            write_generation(staged, self.generation_settings)
        _barrier()
        if args.process_index == 0:
            self._publish(staged, final)
        _barrier()
        if args.local_process_index == 0 and staged.exists():  # a machine with a disk of its own
            self._publish(staged, final)
        _barrier()

    def _file_of(self, folder: Path, name: str) -> Path:
        """Where this rank keeps the state of `stateful[name]`."""
        return folder / f"{name}_{self.args.process_index}.pdstate"

    def _load_rng_state(self, checkpoint):
        """Called by the loop before the first step of a resumed training. PaddleNLP's own method depends on the number of
        visible devices (see `random_states`); it still reads checkpoints of earlier versions, which have its file alone."""
        if checkpoint is None:
            return
        file = self._file_of(Path(checkpoint), _RANDOM_STATES)
        if file.exists():
            restore_random_states(paddle.load(str(file), return_numpy=True))
        else:
            super()._load_rng_state(checkpoint)

    def write_chat_template(self, folder: Path) -> None:
        """Write the chat template of the training beside what is saved; nothing for a training without one."""
        if self.chat_template is not None:
            self.chat_template.write(folder)

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

    def _identity(self) -> dict:
        """What a resumed run must have in common with the checkpoint: the network's shape, the first samples in
        their order, and the content of the whole data (`rows`; None where the data set cannot tell)."""
        config = getattr(self.model, "config", None)
        if self._rows is None and hasattr(self.train_dataset, "digest"):
            self._rows = self.train_dataset.digest()
        first = [self.train_dataset[i]["input_ids"] for i in range(min(8, len(self.train_dataset)))]
        contents = [np.ascontiguousarray(ids).tobytes() for ids in first]
        samples = [hashlib.sha256(content).hexdigest()[:16] for content in contents]
        model = {key: getattr(config, key, None) for key in _NETWORK}
        return {
            "model": model,
            "data": hashlib.sha256(b"".join(contents)).hexdigest(),
            "samples": samples,
            "rows": self._rows,
        }

    def check_resume(self, start: Path, changed: Iterable[str] = ()) -> None:
        """Refuse a checkpoint of another network or other data, before anything is written.

        Args:
            changed: settings of the data that differ, to name in the message.

        Raises:
            UserError: with what differs.
        """
        checkpoints.check_identity(start, self._identity(), changed)

    def _correct_paths(self, staged: Path, meter_state: dict) -> None:
        """What upstream wrote while the folder had its temporary name, with the name that it will have."""
        self.state.save_to_json(str(staged / TRAINER_STATE))
        paddle.save(self.args, str(staged / TRAINING_ARGS))
        (staged / METER_STATE).write_text(json.dumps(meter_state))

    def restore_meter(self) -> None:
        """After upstream has read trainer_state.json: continue the window of metrics where the checkpoint left it."""
        self.meter.step = self.state.global_step
        if self._resumed_from is None:
            return
        box = [None]
        if self.args.process_index == 0:
            box = [json.loads((self._resumed_from / METER_STATE).read_text())]
        if dist.get_world_size() > 1:
            dist.broadcast_object_list(box, src=0)
        self.meter.restore(box[0], self.state.global_step)


def _barrier() -> None:
    if dist.get_world_size() > 1:
        dist.barrier()
