"""Writes a checkpoint in another format: this library's, PaddleNLP's unified checkpoint, or a model folder.

Memory: one tensor. Every target is complete or absent.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from paddle_llm import __version__
from paddle_llm.checkpoint.convert.paddlenlp import SCALER, SCHEDULER
from paddle_llm.checkpoint.convert.source import MASTER_WEIGHTS, WEIGHTS, Source, SourceTensor
from paddle_llm.checkpoint.convert.unified_files import MASTER_INDEX, OPTIMIZER_INDEX
from paddle_llm.checkpoint.format.index import whole
from paddle_llm.checkpoint.format.manifest import Manifest, write_json
from paddle_llm.checkpoint.format.state import CONVERTED_FROM, STATE, encode
from paddle_llm.checkpoint.format.writer import LocalTensor, finish, write_rank_file, write_tensor_file
from paddle_llm.config.local_files.chat_templates import copy_templates
from paddle_llm.core.artifacts import (
    ADDED_TOKENS,
    GENERATION_CONFIG,
    MERGES,
    PADDLENLP_SENTENCEPIECE_MODEL,
    SAFETENSORS,
    SAFETENSORS_INDEX,
    SENTENCEPIECE_MODEL,
    SPECIAL_TOKENS_MAP,
    TOKENIZER_CONFIG,
    TOKENIZER_JSON,
    TRAINER_STATE,
    VOCAB_JSON,
)
from paddle_llm.core.atomic_output import staged_folder
from paddle_llm.core.errors import UserError
from paddle_llm.models.configuration.machine_paths import remove_paths

LARGEST_FILE = 4 << 30  # bytes of a file in this library's format, so that several are verified at the same time
_COMPANIONS = (
    GENERATION_CONFIG, TOKENIZER_CONFIG, TOKENIZER_JSON, SENTENCEPIECE_MODEL, PADDLENLP_SENTENCEPIECE_MODEL,
    SPECIAL_TOKENS_MAP, ADDED_TOKENS, VOCAB_JSON, "vocab.txt", MERGES,
)  # fmt: skip
Advance = Callable[[int], None]  # gets the number of bytes that were read


def write_checkpoint(source: Source, out: Path, *, global_batch: int | None = None, advance: Advance) -> None:
    """Write a checkpoint of this library.

    Args:
        source: The checkpoint.
        out: Folder to write.
        global_batch: Samples per optimizer step, if the checkpoint does not show it.
        advance: Function of the number of bytes that were read, for a progress bar.

    Raises:
        UserError: If the samples per step are unknown, or `out` cannot be written.
    """
    import paddle
    import paddlenlp

    batch = source.global_batch or global_batch
    if batch is None:
        raise UserError(
            f"{source.folder / TRAINER_STATE} does not show the global batch (consumed_samples divided by global_step). Give it: "
            "--global_batch N."
        )
    if global_batch not in (None, batch):
        raise UserError(
            f"--global_batch {global_batch}, but {source.folder} was trained with {batch}. Drop the option."
        )
    with staged_folder(out) as staged:
        files = [
            write_rank_file(staged, number, {key: _local(source.tensors[key], advance) for key in keys})
            for number, keys in enumerate(_groups(source.tensors))
        ]
        source.finish()
        _write_companions(source, staged)
        _write_trainer_state(source, staged, batch)
        records = {STATE: write_json(staged, STATE, encode(_state(source, batch), "state/job")[0])}
        versions = {"paddle_llm": __version__, "paddlepaddle": paddle.__version__, "paddlenlp": paddlenlp.__version__}
        manifest = Manifest(source.step, asdict(source.layout), batch, None, None, versions)
        finish(staged, files, manifest, records)


def write_unified(source: Source, out: Path, *, advance: Advance) -> None:
    """Write a unified checkpoint of PaddleNLP. Arguments and errors are as in `write_checkpoint`.

    Each kind of tensors is one file, because PaddleNLP (3.0.0b4) reads only the first one in a single process.
    """
    import paddle

    weights = _of_kind(source, WEIGHTS)
    # PaddleNLP also expects fp32 weights among the master weights.
    master = _of_kind(source, MASTER_WEIGHTS)
    if master:
        master |= {name: tensor for name, tensor in weights.items() if tensor.dtype == "float32" and name not in master}
    states = {
        f"{name}/{kind}_0": tensor
        for key, tensor in source.tensors.items()
        for kind, _, name in [key.partition("/")]
        if kind not in (WEIGHTS, MASTER_WEIGHTS)
    }
    with staged_folder(out) as staged:
        _write_indexed(staged, SAFETENSORS_INDEX, weights, advance)
        _write_indexed(staged, OPTIMIZER_INDEX, states, advance, master_weights=bool(master))
        if master:
            _write_indexed(staged, MASTER_INDEX, master, advance)
        source.finish()
        _write_companions(source, staged)
        _write_trainer_state(source, staged, source.global_batch)
        for name, state in ((SCHEDULER, source.scheduler), (SCALER, source.scaler)):
            if state is not None:
                paddle.save(dict(state), str(staged / name))


def write_model(source: Source, out: Path, *, advance: Advance) -> None:
    """Write the weights as a model folder in PaddleNLP's format, without the training state. Arguments are as above."""
    weights = _of_kind(source, WEIGHTS)
    groups = list(_groups(weights))
    count = len(groups)
    files = [SAFETENSORS] if count == 1 else [f"model-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)]
    with staged_folder(out) as staged:
        for file, names in zip(files, groups, strict=True):
            write_tensor_file(staged / file, {name: _local(weights[name], advance) for name in names})
        if count > 1:
            total = sum(tensor.nbytes for tensor in weights.values())
            table = {name: file for file, names in zip(files, groups, strict=True) for name in names}
            index = {"metadata": {"total_size": total}, "weight_map": table}
            (staged / SAFETENSORS_INDEX).write_text(json.dumps(index, indent=1))
        source.finish()
        _write_companions(source, staged)


@dataclass
class _Counted:
    """Reads a tensor and counts its bytes."""

    tensor: SourceTensor
    advance: Advance

    def __call__(self) -> np.ndarray:
        values = self.tensor.read()
        self.advance(values.nbytes)
        return values


def _local(tensor: SourceTensor, advance: Advance) -> LocalTensor:
    return LocalTensor(whole(tensor.shape), tensor.dtype, _Counted(tensor, advance))


def _groups(tensors: Mapping[str, SourceTensor]) -> Iterator[list[str]]:
    """Yield the keys of each file."""
    keys: list[str] = []
    size = 0
    for key, tensor in tensors.items():
        if keys and size + tensor.nbytes > LARGEST_FILE:
            yield keys
            keys, size = [], 0
        keys.append(key)
        size += tensor.nbytes
    yield keys


def _of_kind(source: Source, kind: str) -> dict[str, SourceTensor]:
    return {
        key.removeprefix(f"{kind}/"): tensor for key, tensor in source.tensors.items() if key.startswith(f"{kind}/")
    }


def _write_indexed(
    folder: Path, index: str, tensors: Mapping[str, SourceTensor], advance: Advance, **more: Any
) -> None:
    """Write tensors to one file, and the index that names it."""
    file = index.replace(".safetensors.index.json", "-00001-of-00001.safetensors")
    write_tensor_file(folder / file, {name: _local(tensor, advance) for name, tensor in tensors.items()})
    total = sum(tensor.nbytes for tensor in tensors.values())
    content = {"metadata": {"total_size": total}, "weight_map": dict.fromkeys(tensors, file), **more}
    (folder / index).write_text(json.dumps(content, indent=4))


def _write_companions(source: Source, folder: Path) -> None:
    """Write config.json, and copy the files of the tokenizer and the chat template."""
    config = source.config
    config.architectures = [source.family.model_class.split(":")[1]]
    config.save_pretrained(str(folder))
    copy_templates(source.folder, folder)
    for name in _COMPANIONS:
        if (source.folder / name).is_file():
            shutil.copyfile(source.folder / name, folder / name)
    remove_paths(folder)


def _write_trainer_state(source: Source, folder: Path, global_batch: int | None) -> None:
    """Write trainer_state.json, which PaddleNLP's loop reads."""
    trainer = {**source.trainer_state, "global_step": source.step, "best_model_checkpoint": None}
    if global_batch is not None:
        trainer["consumed_samples"] = source.step * global_batch
    (folder / TRAINER_STATE).write_text(json.dumps(trainer, indent=2, sort_keys=True) + "\n")


def _state(source: Source, global_batch: int) -> dict[str, Any]:
    """Return the state of the job. The metrics begin at zero."""
    window = {"loss_times_labels": 0.0, "labels": 0.0, "tokens": 0, "steps": 0, "seconds": 0.0}
    ranks = source.layout.world_size
    return {
        "step": source.step,
        "consumed_samples": source.step * global_batch,
        "scheduler": dict(source.scheduler or {}),
        "scaler": None if source.scaler is None else dict(source.scaler),
        "meter": {
            "window": {**window, "data_wait_seconds": 0.0},
            "per_rank": [[0.0, 0.0, 0]] * ranks,
            "model_ranks": source.layout.tensor * source.layout.pipeline,
            "consumed_tokens": 0,
            "skipped_steps": 0,
        },
        "callbacks": {},
        CONVERTED_FROM: source.title,
    }
