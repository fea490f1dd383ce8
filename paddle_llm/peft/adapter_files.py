"""The files of an adapter folder: `adapter_config.json`, in this library's format or PEFT's, and the tensors."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from paddle_llm.config.local_files.adapters import describe_folder
from paddle_llm.core.artifacts import ADAPTER_CONFIG, ADAPTER_SAFETENSORS
from paddle_llm.core.atomic_output import staged_folder
from paddle_llm.core.errors import UserError
from paddle_llm.core.json_files import read_json_object
from paddle_llm.models.weights.files import WeightFiles, write_safetensors
from paddle_llm.models.weights.vocabulary import real_vocab_size
from paddle_llm.peft.hugging_face.config import method_of_peft
from paddle_llm.peft.hugging_face.format import is_peft
from paddle_llm.peft.hugging_face.tensors import PeftTensors
from paddle_llm.peft.method import Method

if TYPE_CHECKING:
    from paddlenlp.transformers import PretrainedConfig

FORMAT = 1


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """Read adapter_config.json, in this library's format or PEFT's.

    Raises:
        UserError: If the file does not exist or is not a JSON object.
    """
    file = folder / ADAPTER_CONFIG
    if not file.is_file():
        raise UserError(f"{folder} is not an adapter: it has no {ADAPTER_CONFIG}. Give an adapter folder.")
    return read_json_object(file)


def read_checked_config(folder: Path) -> dict[str, Any]:
    """Read adapter_config.json and check that it describes an adapter in one of the two formats.

    Raises:
        UserError: If it does not.
    """
    adapter_config = read_adapter_config(folder)
    if not is_peft(adapter_config) and not all(
        isinstance(adapter_config.get(key), dict) for key in ("method", "model")
    ):
        contents = describe_folder(folder) or " Give an adapter folder."
        raise UserError(
            f"{folder / ADAPTER_CONFIG} is neither in PEFT's format (no peft_type) nor in this library's.{contents}"
        )
    return adapter_config


def base_shape(family: str, config: PretrainedConfig) -> dict[str, Any]:
    """Return the properties in which a base must equal the one that an adapter was trained on.

    Args:
        family: Name of the base's family.
        config: PaddleNLP's configuration of the base.
    """
    return {
        "family": family,
        "hidden_size": config.hidden_size,
        "layers": getattr(config, "n_layer", None) or config.num_hidden_layers,
        "vocab_size": real_vocab_size(config),
    }


def read_method(folder: Path, base: dict[str, Any] | None = None, *, allow_pickle: bool = False) -> Method:
    """Read the settings of an adapter, in this library's format or PEFT's.

    Args:
        folder: Adapter folder.
        base: `base_shape` of the base that the adapter must fit; None: it is not checked.
        allow_pickle: Whether PEFT's adapter_model.bin may be read.

    Raises:
        UserError: If the adapter is unreadable, uses an unsupported feature, or was trained on another base.
    """
    adapter_config = read_checked_config(folder)
    if is_peft(adapter_config):
        return method_of_peft(folder, adapter_config, base, allow_pickle=allow_pickle)
    method, shape = adapter_config["method"], adapter_config["model"]
    if base is not None and shape != base:
        differing = ", ".join(
            f"{key} {value} (this base: {base.get(key)})" for key, value in shape.items() if value != base.get(key)
        )
        raise UserError(
            f"The adapter in {folder} was trained on another base: {differing}. Give the base that it was trained on."
        )
    return Method.from_dict(method, folder / ADAPTER_CONFIG)


def open_tensors(
    folder: Path, family: str, base: Mapping[str, int], config: PretrainedConfig, *, allow_pickle: bool = False
) -> WeightFiles:
    """Open an adapter's tensors under canonical names, in this library's format or PEFT's.

    Args:
        folder: Adapter folder.
        family: Name of the base's family.
        base: Canonical name -> number of dimensions of each weight of the base.
        config: PaddleNLP's configuration of the base.
        allow_pickle: Whether PEFT's adapter_model.bin may be read.

    Raises:
        UserError: If a file is missing or broken, or a tensor belongs to no weight of the base.
    """
    adapter_config = read_checked_config(folder)
    if is_peft(adapter_config):
        return PeftTensors(folder, adapter_config, family, base, config, allow_pickle=allow_pickle)
    return WeightFiles(folder, file=ADAPTER_SAFETENSORS)


def write_adapter(
    folder: Path,
    adapter_config: dict[str, Any],
    tensors: dict[str, np.ndarray],
    *,
    format: str = "np",
    extra: Callable[[Path], None] | None = None,
) -> None:
    """Write an adapter folder, complete or not at all. An existing folder is replaced.

    Args:
        folder: The folder.
        adapter_config: Contents of adapter_config.json.
        tensors: Tensors by name.
        format: Format in the metadata of the safetensors file: "np" or "pt".
        extra: Function that writes further files to the folder.

    Raises:
        UserError: If the folder cannot be written, or the disk is full.
    """
    with staged_folder(folder) as staged:
        write_safetensors(staged / ADAPTER_SAFETENSORS, tensors, format=format)
        (staged / ADAPTER_CONFIG).write_text(json.dumps(adapter_config, indent=1))
        if extra is not None:
            extra(staged)
