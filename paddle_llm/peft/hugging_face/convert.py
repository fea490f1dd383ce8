"""Conversion of an adapter folder between this library's format and that of Hugging Face's PEFT."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from paddle_llm.config.local_files.chat_templates import copy_templates
from paddle_llm.config.local_files.model_folder import read_model_facts
from paddle_llm.core.artifacts import (
    ADAPTER_CONFIG,
    ADAPTER_PICKLE,
    ADAPTER_SAFETENSORS,
    ADDED_TOKENS,
    MERGES,
    PADDLENLP_SENTENCEPIECE_MODEL,
    SENTENCEPIECE_MODEL,
    SPECIAL_TOKENS_MAP,
    TOKENIZER_CONFIG,
    TOKENIZER_JSON,
    VOCAB_JSON,
)
from paddle_llm.core.console import say
from paddle_llm.core.errors import UserError
from paddle_llm.families.shape import find_family
from paddle_llm.models.build import plain_configuration
from paddle_llm.models.configuration.machine_paths import remove_paths
from paddle_llm.models.weights import names
from paddle_llm.models.weights.files import WeightFiles
from paddle_llm.models.weights.weight_shapes import weight_shapes
from paddle_llm.peft.adapter_files import FORMAT, base_shape, read_checked_config, write_adapter
from paddle_llm.peft.base import BaseModel
from paddle_llm.peft.hugging_face.config import config_of_peft, method_of_peft
from paddle_llm.peft.hugging_face.format import LORA_PARTS, PEFT_PREFIX, is_peft
from paddle_llm.peft.hugging_face.tensors import PeftTensors
from paddle_llm.peft.method import Method

# The tokenizer files that other trainers save beside an adapter.
TOKENIZER_FILES = (
    TOKENIZER_CONFIG, TOKENIZER_JSON, SPECIAL_TOKENS_MAP, ADDED_TOKENS, SENTENCEPIECE_MODEL,
    PADDLENLP_SENTENCEPIECE_MODEL, "spiece.model", VOCAB_JSON, "vocab.txt", MERGES, "qwen.tiktoken", "tiktoken.model",
)  # fmt: skip
_MERGE = "Write the base with the adapter merged in: paddle-llm export."
_KEEP = "Use it with this library: paddle-llm generate --adapter."
_NOT_IN_PEFT = {
    "adalora": "PEFT divides AdaLoRA's product by the number of remaining ranks, so the same matrices would have another "
    f"meaning. {_MERGE}",
    "prefix": f"PEFT stores prefixes in another form for each model. {_KEEP}",
    "prompt": f"PEFT puts the prompt tokens before the text, this library puts them inside the template. {_KEEP}",
    "adapter": f"PEFT has no bottleneck adapters (Houlsby et al. 2019). {_KEEP}",
}
Progress = Callable[[list[str]], Iterable[str]]  # wraps a list of names, for a progress bar


class NamedTensors(Protocol):
    """Tensors by canonical name, such as `WeightFiles`."""

    def names(self) -> list[str]:
        """Return the names of all tensors."""

    def view(self, name: str) -> np.ndarray:
        """Return a tensor; bfloat16 as bits in uint16."""

    def __contains__(self, name: str) -> bool: ...


@dataclass(frozen=True)
class LoraAdapter:
    """A LoRA adapter to write.

    Attributes:
        folder: Folder that it comes from, for messages.
        method: Its settings.
        shape: `base_shape` of the base that it was trained on.
        tensors: Its tensors under canonical names.
    """

    folder: Path
    method: Method
    shape: dict[str, Any]
    tensors: NamedTensors


_FUSED = (".qkv_proj.", ".gate_up_fused_proj.")


def to_peft(folder: Path, out: Path, base: BaseModel, *, show: Progress = iter) -> str:
    """Write an adapter of this library in PEFT's format.

    Memory: the size of the adapter.

    Args:
        folder: Adapter folder.
        out: Folder to write.
        base: Base model that PEFT is to load the adapter with.
        show: Wrapper of an iterable, for a progress bar.

    Returns:
        The name of the base that was stored.

    Raises:
        UserError: If the adapter is not LoRA, has something that PEFT cannot express, or `base` has another shape.
    """
    adapter_config = read_checked_config(folder)
    if is_peft(adapter_config):
        raise UserError(f"{folder} is already in PEFT's format. Use it as it is.")
    method, shape = Method.from_dict(adapter_config["method"]), adapter_config["model"]
    if method.name != "lora":
        reason = _NOT_IN_PEFT.get(method.name, f"PEFT has no weights without an adapter. {_MERGE}")
        raise UserError(f"{folder} was trained by {method.name}, which cannot be converted: {reason}")
    if method.lora_plus_scale != 1.0:
        say(
            f"lora_plus_scale {method.lora_plus_scale} affects only training and is not part of PEFT's format; it is dropped"
        )
    files = WeightFiles(folder, file=ADAPTER_SAFETENSORS)
    if base.is_requested:
        check_shape(folder, base, shape)
    adapter = LoraAdapter(folder, method, shape, files)
    write_peft(out, adapter, base, extra=partial(copy_other_files, folder), show=show)
    return base.name


def write_peft(
    out: Path, adapter: LoraAdapter, base: BaseModel, *, extra: Callable[[Path], None], show: Progress = iter
) -> None:
    """Write a LoRA adapter in PEFT's format.

    Args:
        out: Folder to write.
        adapter: The adapter.
        base: Base model that PEFT is to load the adapter with.
        extra: Function that writes further files to the folder.
        show: Wrapper of an iterable, for a progress bar.

    Raises:
        UserError: If PEFT cannot express the adapter, or a base that is needed is not on this machine.
    """
    _refuse_fused(adapter.folder, adapter.tensors)
    family = adapter.shape["family"]
    tensors, layers, retrained = _in_peft_names(adapter.tensors, family, show)
    head = _tied_head(base, family, adapter.tensors)
    if head is not None:  # PEFT trains a copy of each module in modules_to_save, also of two that share a weight
        embedding = names.hugging_face(family, names.EMBEDDINGS[family], 2).name
        if embedding in retrained and PEFT_PREFIX + embedding in tensors:
            tensors[PEFT_PREFIX + head] = tensors[PEFT_PREFIX + embedding]
            retrained.append(head)
    config = config_of_peft(adapter.method, layers, retrained, base.name, adapter.shape["layers"])
    write_adapter(out, config, tensors, format="pt", extra=extra)


def from_peft(
    folder: Path,
    out: Path,
    base: BaseModel,
    *,
    show: Progress = iter,
    allow_pickle: bool = False,
) -> str:
    """Write an adapter of PEFT in this library's format. Other arguments, result and memory are as in `to_peft`.

    Args:
        folder: Adapter folder.
        out: Folder to write.
        base: Base model; its config.json must be on this machine.
        show: Wrapper of an iterable, for a progress bar.
        allow_pickle: Whether adapter_model.bin may be read.

    Raises:
        UserError: If the adapter uses an unsupported feature, or its base is not on this machine or does not fit.
    """
    adapter_config = read_checked_config(folder)
    if not is_peft(adapter_config):
        raise UserError(f"{folder} is already in this library's format. Use it as it is.")
    base_folder = require_folder(base)
    try:
        method, shape, files = open_with_base(folder, base_folder, allow_pickle=allow_pickle)
    except UserError as error:
        raise UserError(f"{error}{'' if base.is_requested else describe_base(base)}") from error
    tensors = {name: np.ascontiguousarray(files.view(name)) for name in show(files.names())}
    adapter_config = {"format": FORMAT, "method": method.as_dict(), "model": shape, "base": base.name}
    write_adapter(out, adapter_config, tensors, extra=partial(copy_other_files, folder))
    return base.name


def open_with_base(
    folder: Path, base: Path, *, allow_pickle: bool = False
) -> tuple[Method, dict[str, Any], PeftTensors]:
    """Open an adapter of PEFT and check its names and shapes against its base.

    Args:
        folder: Adapter folder.
        base: Folder of the base model.
        allow_pickle: Whether adapter_model.bin may be read.

    Returns:
        Its method, the `base_shape` of the base, and its tensors.

    Raises:
        UserError: If the adapter uses an unsupported feature, or belongs to another base.
    """
    adapter_config = read_checked_config(folder)
    facts = read_model_facts(base)
    family = find_family(facts)
    config = plain_configuration(base, family, facts.raw)
    shape, shapes = base_shape(family.name, config), weight_shapes(config, family)
    method = method_of_peft(folder, adapter_config, shape, allow_pickle=allow_pickle)
    ndims = {name: len(dims) for name, dims in shapes.items()}
    files = PeftTensors(folder, adapter_config, family.name, ndims, config, allow_pickle=allow_pickle)
    for name in files.names():
        layer, _, part = name.rpartition(".")
        expected = shapes.get(name)
        if part in LORA_PARTS:
            (inputs, outputs), rank = shapes[f"{layer}.weight"], method.rank_of(layer)
            expected = {"lora_A": (inputs, rank), "lora_B": (rank, outputs), "lora_magnitude": (outputs,)}[part]
        if files.shape(name) != expected:
            raise UserError(
                f"{folder}: {name} has shape {list(files.shape(name))}, but {base} needs {list(expected or ())}. "
                "Give the base that the adapter was trained on."
            )
    return method, shape, files


def copy_other_files(source: Path, target: Path) -> None:
    """Copy the chat template and the tokenizer of an adapter folder, and report other files."""
    copy_templates(source, target)
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    remove_paths(target)
    known = {
        ADAPTER_CONFIG,
        ADAPTER_SAFETENSORS,
        ADAPTER_PICKLE,
        "README.md",
        *(path.name for path in target.iterdir()),
    }
    others = sorted(path.name for path in source.iterdir() if path.name not in known and not path.name.startswith("."))
    if others:
        say(f"{source}: not copied: {', '.join(others[:8])}{' ...' if len(others) > 8 else ''}")


def _in_peft_names(
    files: NamedTensors, family: str, show: Progress
) -> tuple[dict[str, np.ndarray], dict[str, str], list[str]]:
    """Convert the tensors of an adapter.

    Returns:
        Tensors by PEFT's names; Hugging Face's name of each layer with LoRA -> its canonical name; Hugging Face's
        names of the trained weights of the base.
    """
    tensors, retrained = {}, []
    layers = {
        names.hugging_face(family, f"{layer}.weight", 2).name.removesuffix(".weight"): layer
        for layer, _, part in (name.rpartition(".") for name in files.names())
        if part == "lora_A"
    }
    for name in show(files.names()):
        layer, _, part = name.rpartition(".")
        values = files.view(name)
        if part in LORA_PARTS:
            foreign = names.hugging_face(family, f"{layer}.weight", 2)
            module = f"{PEFT_PREFIX}{foreign.name.removesuffix('.weight')}"
            if part == "lora_magnitude":
                tensors[f"{module}.lora_magnitude_vector"] = values
            elif foreign.transpose:
                tensors[f"{module}.{part}.weight"] = values.T
            else:
                tensors[f"{module}.{part.replace('lora_', 'lora_embedding_')}"] = values.T
            continue
        foreign = names.hugging_face(family, name, values.ndim)
        module, _, last = foreign.name.rpartition(".")
        written = f"{module}.base_layer.{last}" if module in layers else foreign.name
        tensors[PEFT_PREFIX + written] = values.T if foreign.transpose else values
        retrained.append(foreign.name)
    return tensors, layers, retrained


def _refuse_fused(folder: Path, files: NamedTensors) -> None:
    """Raise UserError if an adapter has LoRA on matrices that Hugging Face's model keeps separate."""
    fused = next((name for name in files.names() if any(part in name for part in _FUSED)), None)
    if fused is not None:
        raise UserError(
            f"{folder} has LoRA on fused matrices ({fused}), which Hugging Face's model keeps separate. Train without "
            "--fuse_attention_qkv and --fuse_attention_ffn, or merge the adapter: paddle-llm export."
        )


def _tied_head(base: BaseModel, family: str, files: NamedTensors) -> str | None:
    """Return Hugging Face's name of the head if it is tied to the embedding and the adapter trained the embedding."""
    if names.EMBEDDINGS[family] not in files:
        return None
    base_folder = require_folder(base)
    facts = read_model_facts(base_folder)
    return names.tied_head(
        family, plain_configuration(base_folder, find_family(facts), facts.raw), is_hugging_face=True
    )


def check_shape(folder: Path, base: BaseModel, shape: dict[str, Any]) -> None:
    """Raise UserError if the base has another shape than the adapter's; report a base that cannot be compared."""
    if base.folder is None:
        say(f"--base {base.name} is not a local folder; it is stored as a name and not compared with the adapter")
        return
    facts = read_model_facts(base.folder)
    family = find_family(facts)
    actual = base_shape(family.name, plain_configuration(base.folder, family, facts.raw))
    differing = ", ".join(
        f"{key} is {actual[key]}, not {shape.get(key)}" for key in actual if shape.get(key) != actual[key]
    )
    if differing:
        raise UserError(
            f"--base {base.folder} does not fit {folder}: {differing}. Give the base that it was trained on."
        )


def describe_base(base: BaseModel) -> str:
    """Describe the base that the adapter's files name, for a message."""
    return (
        f" The adapter was compared with the base that its {ADAPTER_CONFIG} names, {base.name} ({base.folder}). "
        "Give another one with --base."
    )


def require_folder(base: BaseModel) -> Path:
    """Return the local folder of a base; raise UserError if it is not on this machine."""
    if base.folder is None:
        problem = base.problem[:1].upper() + base.problem[1:]
        raise UserError(f"{problem}. Its config.json is needed: give its folder with --base.")
    return base.folder
