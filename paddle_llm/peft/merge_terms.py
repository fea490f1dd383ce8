"""One adapter as a term of a sum: opened, checked, and read layer by layer."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from paddle_llm.core.artifacts import (
    ADAPTER_CONFIG,
    ADAPTER_SAFETENSORS,
    CHAT_TEMPLATE,
    CHAT_TEMPLATE_RECORD,
    CHAT_TEMPLATES_FOLDER,
)
from paddle_llm.core.console import say
from paddle_llm.core.errors import UserError
from paddle_llm.families import FAMILIES
from paddle_llm.models.weights.files import WeightFiles, is_finite
from paddle_llm.peft.adapter_files import read_checked_config
from paddle_llm.peft.base import BaseModel
from paddle_llm.peft.hugging_face.convert import TOKENIZER_FILES, describe_base, open_with_base, require_folder
from paddle_llm.peft.hugging_face.format import is_peft
from paddle_llm.peft.merge_products import Product
from paddle_llm.peft.method import Method

_PARTS = ("lora_A", "lora_E", "lora_B")
# Fused matrix -> the matrices that it replaces: a network has either the one or the others.
_FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_fused_proj": ("gate_proj", "up_proj")}


@dataclass(frozen=True)
class Addend:
    """What the user names as one adapter of the sum.

    Attributes:
        folder: Adapter folder, in this library's format or PEFT's.
        base: Its base model; PEFT's format needs its folder.
        weight: Factor of the adapter.
    """

    folder: Path
    base: BaseModel
    weight: float = 1.0


@dataclass(frozen=True)
class Term:
    """One adapter of the sum.

    Attributes:
        folder: Adapter folder.
        weight: Factor of the adapter.
        method: Its settings: LoRA or AdaLoRA.
        shape: `base_shape` of its base.
        files: Its tensors under canonical names.
        layers: Canonical names of the layers with LoRA.
        retrained: Canonical names of the trained weights of the base.
    """

    folder: Path
    weight: float
    method: Method
    shape: dict[str, Any]
    files: WeightFiles
    layers: list[str]
    retrained: list[str]

    def product(self, layer: str) -> Product:
        """Return what the adapter adds to the weight of a layer, times the adapter's weight."""
        a, b = self.read(f"{layer}.lora_A"), self.read(f"{layer}.lora_B")
        if self.method.name == "lora":
            return Product(a, b, self.weight * self.method.scaling_of(layer))
        diagonal = self.read(f"{layer}.lora_E")  # AdaLoRA: A diag(E) B; E is zero where the rank was reduced
        kept = np.flatnonzero(diagonal) if diagonal.any() else np.arange(1)
        return Product(a[:, kept] * diagonal[kept], b[kept], self.weight * self.method.scaling)

    def read(self, name: str) -> np.ndarray:
        """Return a tensor in fp32."""
        values = self.files.read(name, 0, 0, self.files.shape(name)[0])
        return values.astype(np.float32, copy=False)


def open_term(addend: Addend, *, allow_pickle: bool = False) -> Term:
    """Open an adapter and check that it can be part of a sum.

    Args:
        addend: The adapter.
        allow_pickle: Whether PEFT's adapter_model.bin may be read.

    Raises:
        UserError: If the files do not belong together, values are not finite, or the method does not add to the weights.
    """
    folder, base = addend.folder, addend.base
    config = read_checked_config(folder)
    files: WeightFiles
    if is_peft(config):
        try:
            method, shape, files = open_with_base(folder, require_folder(base), allow_pickle=allow_pickle)
        except UserError as error:
            hint = "" if base.is_requested or base.folder is None else describe_base(base)
            raise UserError(f"{error}{hint}") from error
    else:
        method, shape = Method.from_dict(config["method"], folder / ADAPTER_CONFIG), config["model"]
        _refuse_other_methods(folder, method)
        _check_settings(folder, method, shape)
        files = WeightFiles(folder, file=ADAPTER_SAFETENSORS)
    _refuse_other_methods(folder, method)
    layers = [name.removesuffix(".lora_A") for name in files.names() if name.endswith(".lora_A")]
    own = {f"{layer}.{part}" for layer in layers for part in _PARTS}
    term = Term(
        folder, addend.weight, method, shape, files, layers, [name for name in files.names() if name not in own]
    )
    _check_tensors(term)
    return term


def refuse_different_bases(addends: Sequence[Addend]) -> None:
    """Raise UserError if adapters name different base models; a base that the user named is that of all."""
    first = addends[0]
    if len(addends) == 1 or first.base.is_requested:
        return
    for addend in addends:
        if not addend.base.name:
            problem = addend.base.problem
            raise UserError(f"{problem[:1].upper() + problem[1:]}. Name it with --base.")
        if _identity(addend.base) != _identity(first.base):
            raise UserError(
                f"{first.folder} was trained on {first.base.name}, {addend.folder} on {addend.base.name}. Merge adapters of one base. "
                "If both names mean the same model, name it with --base."
            )


def choose_companions(folders: Sequence[Path]) -> Path:
    """Return the adapter whose chat template and tokenizer the result gets: the first that has any; report others."""
    having = [folder for folder in folders if _companions(folder)]
    if not having:
        return folders[0]
    chosen = _companions(having[0])
    for folder in folders:
        other = _companions(folder)
        if other and other != chosen:
            names = sorted(name for name in chosen.keys() | other.keys() if chosen.get(name) != other.get(name))
            say(f"{folder} has other {', '.join(names)} than {having[0]}; the files of {having[0]} are kept")
    return having[0]


def _identity(base: BaseModel) -> str:
    return os.path.realpath(base.folder) if base.folder is not None else base.name


def _companions(folder: Path) -> dict[str, bytes]:
    """Return the chat templates, their record and the tokenizer files of a folder: relative name -> content."""
    named = [folder / name for name in (CHAT_TEMPLATE, CHAT_TEMPLATE_RECORD, *TOKENIZER_FILES)]
    templates = sorted((folder / CHAT_TEMPLATES_FOLDER).rglob("*"))
    return {str(file.relative_to(folder)): file.read_bytes() for file in (*named, *templates) if file.is_file()}


def _refuse_other_methods(folder: Path, method: Method) -> None:
    if method.name not in ("lora", "adalora"):
        raise UserError(
            f"{folder} was trained by {method.name}, which is not a product that is added to the weights. Only LoRA and AdaLoRA can "
            "be merged into one adapter."
        )
    if method.dora:
        raise UserError(
            f"{folder} is a DoRA adapter. Its magnitudes rescale the base together with the adapter, so it is not a term of a sum. "
            f"Merge it into its base: paddle-llm export BASE OUT --target hf --adapter {folder}."
        )


def _check_settings(folder: Path, method: Method, shape: dict[str, Any]) -> None:
    """Raise UserError if settings that this module computes with have another type than this library writes."""
    ranks = (method.rank, method.initial_rank, *(rank for _, rank in method.ranks))
    alphas = (method.scale_alpha, *(alpha for _, alpha in method.alphas))
    fits = (
        shape.get("family") in FAMILIES
        and type(shape.get("layers")) is int
        and all(type(rank) is int and rank > 0 for rank in ranks)
        and all(type(alpha) in (int, float) and math.isfinite(alpha) for alpha in alphas)
    )
    if not fits:
        raise UserError(
            f"{folder / ADAPTER_CONFIG} was not written by this library: rank, alpha, family or layers is invalid. Copy the file again."
        )


def _check_tensors(term: Term) -> None:
    """Raise UserError if the tensors do not form products of the ranks that the settings name, or are not finite."""
    files = term.files
    if not term.layers:
        raise UserError(f"{term.folder}: {ADAPTER_SAFETENSORS} contains no LoRA. Copy both files of the adapter again.")
    for name in term.retrained:
        if name.rpartition(".")[2].startswith("lora_"):
            raise UserError(f"{term.folder}: {name} has no lora_A. Copy both files of the adapter again.")
    for layer in term.layers:
        parts = _PARTS if term.method.name == "adalora" else ("lora_A", "lora_B")
        for part in _PARTS:
            if (f"{layer}.{part}" in files) != (part in parts):
                problem = "is missing" if part in parts else f"does not belong to {term.method.name}"
                raise UserError(f"{term.folder}: {layer}.{part} {problem}. Copy both files of the adapter again.")
        rank = term.method.rank_of(layer) if term.method.name == "lora" else term.method.initial_rank
        shapes = [files.shape(f"{layer}.{part}") for part in parts]
        fits = len(shapes[0]) == len(shapes[-1]) == 2 and shapes[0][1] == shapes[-1][0] == rank
        if not fits or (len(shapes) == 3 and shapes[1] != (rank,)):
            found = " and ".join(str(list(shape)) for shape in shapes)
            raise UserError(
                f"{term.folder}: {layer} has matrices of shape {found}, but {ADAPTER_CONFIG} gives rank {rank}. Copy both files of "
                "the adapter again."
            )
    for name in files.names():
        if not files.is_weight(name):
            raise UserError(
                f"{term.folder}: {name} is stored as {files.dtype(name)}, which is not supported. Use fp32, fp16 or bf16."
            )
        if not is_finite(files.view(name)):
            raise UserError(f"{term.folder}: {name} contains NaN or infinity. Use an earlier checkpoint.")


def refuse_fused_and_separate(terms: Sequence[Term]) -> None:
    """Raise UserError if one adapter has LoRA on a fused matrix and another one on a matrix that it replaces."""
    owners = {layer: term.folder for term in terms for layer in term.layers}
    for layer, folder in owners.items():
        block, _, kind = layer.rpartition(".")
        for part in _FUSED.get(kind, ()):
            other = owners.get(f"{block}.{part}")
            if other is not None:
                raise UserError(
                    f"{folder} has LoRA on the fused matrix {layer}, {other} on {part}, which a network with fused matrices does not "
                    "have. Train both with the same --fuse_attention_qkv and --fuse_attention_ffn."
                )
