"""Opens a checkpoint of this library's format, written on any layout."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from paddle_llm.checkpoint.convert.source import WEIGHTS, Source, SourceTensor
from paddle_llm.checkpoint.format.manifest import read_json
from paddle_llm.checkpoint.format.reader import Reader
from paddle_llm.checkpoint.format.state import STATE, decode
from paddle_llm.checkpoint.format.verify import verify
from paddle_llm.config.layout import Layout
from paddle_llm.config.local_files.model_folder import read_model_facts
from paddle_llm.core.artifacts import MODEL_CONFIG, TRAINER_STATE
from paddle_llm.core.errors import UserError
from paddle_llm.core.json_files import read_json_object
from paddle_llm.families.shape import find_family
from paddle_llm.models.weights.vocabulary import plain_config
from paddle_llm.models.weights.weight_shapes import weight_shapes

if TYPE_CHECKING:
    from paddlenlp.transformers import PretrainedConfig

    from paddle_llm.checkpoint.format.index import TensorEntry
    from paddle_llm.families import Family

_STATE_KIND = "state"  # arrays of callbacks, which other formats do not have


def open_ours(folder: Path) -> Source:
    """Open a checkpoint of this library. Its digests are compared while it is read: `Source.finish` reports damage.

    Args:
        folder: Folder of the checkpoint.

    Raises:
        UserError: If it is damaged, or does not contain the weights of a whole network.
    """
    verify(folder, "fast")
    reader = Reader(folder, digests=True)
    facts = read_model_facts(folder)
    family: Family = find_family(facts)
    config: PretrainedConfig = plain_config(
        family.load("config_class").from_dict(json.loads((folder / MODEL_CONFIG).read_text()))
    )
    keys = reader.in_file_order(key for key in reader.index.tensors if not key.startswith(f"{_STATE_KIND}/"))
    for flag, matrix in (("fuse_attention_qkv", ".qkv_proj."), ("fuse_attention_ffn", ".gate_up_fused_proj.")):
        if hasattr(config, flag) and any(matrix in key for key in keys):
            setattr(config, flag, True)
    network = weight_shapes(config, family)
    names = {key.partition("/")[2] for key in keys if key.startswith(f"{WEIGHTS}/")}
    if names != set(network):
        different = min(names.symmetric_difference(network))
        raise UserError(
            f"{folder} does not contain exactly the weights of the network in its {MODEL_CONFIG}: {different} differs. Only checkpoints of "
            "whole networks are converted."
        )
    state = decode(read_json(folder, STATE), _no_arrays)
    return Source(
        folder,
        "a checkpoint of paddle_llm",
        family,
        config,
        Layout(**reader.manifest.layout),
        reader.manifest.step,
        {key: _tensor(reader, key) for key in keys},
        trainer_state=read_json_object(folder / TRAINER_STATE),
        scheduler=state.get("scheduler"),
        scaler=state.get("scaler"),
        global_batch=reader.manifest.global_batch,
        finish=reader.finish,
    )


def _no_arrays(key: str) -> Any:
    raise UserError(f"state.json names an array, {key}, which is not known. Use another checkpoint.")


def _tensor(reader: Reader, key: str) -> SourceTensor:
    entry = reader.index.tensors[key]
    shape = list(entry.shape)
    if entry.unpadded is not None:
        shape[entry.parts[0].axis] = entry.unpadded
    return SourceTensor(tuple(shape), entry.dtype, partial(_read, reader, key, entry))


def _read(reader: Reader, key: str, entry: TensorEntry) -> np.ndarray:
    values = reader.tensor(key)
    if entry.unpadded is None:
        return values
    rows = [slice(None)] * values.ndim
    rows[entry.parts[0].axis] = slice(entry.unpadded)
    return values[tuple(rows)]
