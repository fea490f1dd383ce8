"""An adapter's folder in the other format: this library's and Hugging Face PEFT's."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from paddle_llm.config.local_files.chat_templates import copy_templates
from paddle_llm.config.model_facts import looks_local, read_model_facts
from paddle_llm.core.artifacts import (
    ADAPTER_CONFIG,
    ADAPTER_PICKLE,
    ADAPTER_SAFETENSORS,
    ADDED_TOKENS,
    MERGES,
    MODEL_CONFIG,
    MODEL_FOLDER,
    PADDLENLP_SENTENCEPIECE_MODEL,
    SENTENCEPIECE_MODEL,
    SPECIAL_TOKENS_MAP,
    TOKENIZER_CONFIG,
    TOKENIZER_JSON,
    VOCAB_JSON,
)
from paddle_llm.core.console import say
from paddle_llm.core.errors import UserError
from paddle_llm.families.facts import ModelFacts
from paddle_llm.families.shape import find_family
from paddle_llm.models.build import plain_configuration
from paddle_llm.models.configuration.machine_paths import remove_paths
from paddle_llm.models.weights import names
from paddle_llm.models.weights.files import WeightFiles
from paddle_llm.models.weights.outline import outline
from paddle_llm.peft.base import base_named_in, find_base, lasting_name, why_not_found
from paddle_llm.peft.hugging_face.config import config_of_peft, method_of_peft
from paddle_llm.peft.hugging_face.format import BEGIN, OWN, PeftTensors, is_peft
from paddle_llm.peft.method import Method
from paddle_llm.peft.save import FORMAT, base_shape, described_in, write_adapter

# A tokenizer that other trainers save beside an adapter.
TOKENIZER_FILES = (
    TOKENIZER_CONFIG, TOKENIZER_JSON, SPECIAL_TOKENS_MAP, ADDED_TOKENS, SENTENCEPIECE_MODEL,
    PADDLENLP_SENTENCEPIECE_MODEL, "spiece.model", VOCAB_JSON, "vocab.txt", MERGES, "qwen.tiktoken", "tiktoken.model",
)  # fmt: skip
_NO_PLACE = {
    "adalora": "PEFT divides AdaLoRA's product by the number of ranks that are left, so that the same matrices would mean "
    "something else. Merge it instead: paddle-llm export",
    "prefix": "PEFT keeps what a prefix is made of in another form for each model",
    "prompt": "PEFT puts its tokens before the text alone, here they have a place in the template",
    "adapter": "PEFT has no adapters of this kind (Houlsby et al. 2019)",
}
_FUSED = (".qkv_proj.", ".gate_up_fused_proj.")


def to_peft(folder: Path, out: Path, *, base: str | Path | None = None, show: Callable[[Any], Any] = iter) -> str:
    """Write an adapter of this library's as PEFT's.

    Memory: the adapter.

    Args:
        base: what PEFT is to load it over; None: what the adapter names.
        show: wraps what is gone through, for a progress bar.

    Returns:
        the base that it names: a folder, the name of a model, or "".

    Raises:
        UserError: no LoRA, something in it that PEFT has no place for, or `base` is of another shape.
    """
    described = described_in(folder)
    if is_peft(described):
        raise UserError(f"{folder} is in PEFT's format already")
    method, shape = Method.from_dict(described["method"]), described["model"]
    if method.name != "lora":
        why = _NO_PLACE.get(method.name, "PEFT knows adapters alone")
        raise UserError(f"{folder} was trained by {method.name}: {why}.")
    files = WeightFiles(folder, file=ADAPTER_SAFETENSORS)
    _refuse_fused(folder, files)
    if method.lora_plus_scale != 1.0:
        say(f"lora_plus_scale {method.lora_plus_scale} is of training alone, and PEFT has no place for it: left out")
    where, family = _lasting_base(folder, base, described), shape["family"]
    if base is not None:
        _check_shape(folder, where, shape)
    tensors, layers, retrained = _in_peft_names(files, family, show)
    head = _tied_head(folder, where, family, files)
    if head is not None:  # PEFT trains a copy of each module in modules_to_save, also of two that share a weight
        embedding = names.hugging_face(family, names.EMBEDDINGS[family], 2).name
        if embedding in retrained and BEGIN + embedding in tensors:
            tensors[BEGIN + head] = tensors[BEGIN + embedding]
            retrained.append(head)
    write_adapter(
        out,
        config_of_peft(method, layers, retrained, where, shape["layers"]),
        tensors,
        format="pt",
        extra=partial(_copy_beside, folder),
    )
    return where


def from_peft(
    folder: Path,
    out: Path,
    *,
    base: str | Path | None = None,
    show: Callable[[Any], Any] = iter,
    allow_pickle: bool = False,
) -> str:
    """Write an adapter of PEFT's as this library's. Other arguments, result and memory as in `to_peft`.

    Args:
        allow_pickle: whether to read adapter_model.bin.

    Raises:
        UserError: it does something that LoRA here does not; its base is not here; it belongs to another one.
    """
    described = described_in(folder)
    if not is_peft(described):
        raise UserError(f"{folder} is in this library's format already")
    named = _lasting_base(folder, base, described)
    try:
        method, shape, files = open_over_base(folder, named, allow_pickle=allow_pickle)
    except UserError as error:
        raise UserError(f"{error}{_which_base(folder, named) if base is None else ''}") from error
    tensors = {name: np.ascontiguousarray(files.view(name)) for name in show(files.names())}
    described = {"format": FORMAT, "method": method.as_dict(), "model": shape, "base": named}
    write_adapter(out, described, tensors, extra=partial(_copy_beside, folder))
    return named


def open_over_base(
    folder: Path, base: str, *, allow_pickle: bool = False
) -> tuple[Method, dict[str, Any], PeftTensors]:
    """An adapter of PEFT's with the names and shapes that its base asks for.

    Returns:
        Its method, the `base_shape` of the base, and its tensors.

    Raises:
        UserError: If it does something that LoRA here does not, or belongs to another base.
    """
    described = described_in(folder)
    where, facts = _facts_of_base(folder, base)
    family = find_family(facts)
    config = plain_configuration(where, family, facts.raw)
    shape, shapes = base_shape(family.name, config), outline(config, family)
    method = method_of_peft(folder, described, shape, allow_pickle=allow_pickle)
    ndims = {name: len(one) for name, one in shapes.items()}
    files = PeftTensors(folder, described, family.name, ndims, config, allow_pickle=allow_pickle)
    for name in files.names():
        layer, _, own = name.rpartition(".")
        wanted = shapes.get(name)
        if own in OWN:
            (inputs, outputs), rank = shapes[f"{layer}.weight"], method.rank_of(layer)
            wanted = {"lora_A": (inputs, rank), "lora_B": (rank, outputs), "lora_magnitude": (outputs,)}[own]
        if files.shape(name) != wanted:
            raise UserError(
                f"{folder}: {name} is {list(files.shape(name))}, over {where} it would be {list(wanted or ())}"
            )
    return method, shape, files


def _copy_beside(source: Path, target: Path) -> None:
    """Copy the chat template and the tokenizer of an adapter's folder, where it has them."""
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
    files: WeightFiles, family: str, show: Callable[[Any], Any]
) -> tuple[dict[str, np.ndarray], dict[str, str], list[str]]:
    """Tensors as PEFT's file has them; Hugging Face's name of each layer with LoRA -> its canonical name; names of weights."""
    tensors, retrained = {}, []
    layers = {
        names.hugging_face(family, f"{layer}.weight", 2).name.removesuffix(".weight"): layer
        for layer, _, own in (name.rpartition(".") for name in files.names())
        if own == "lora_A"
    }
    for name in show(files.names()):
        layer, _, own = name.rpartition(".")
        values = files.view(name)
        if own in OWN:
            there = names.hugging_face(family, f"{layer}.weight", 2)
            module = f"{BEGIN}{there.name.removesuffix('.weight')}"
            if own == "lora_magnitude":
                tensors[f"{module}.lora_magnitude_vector"] = values
            elif there.transpose:
                tensors[f"{module}.{own}.weight"] = values.T
            else:
                tensors[f"{module}.{own.replace('lora_', 'lora_embedding_')}"] = values.T
            continue
        there = names.hugging_face(family, name, values.ndim)
        module, _, last = there.name.rpartition(".")
        written = f"{module}.base_layer.{last}" if module in layers else there.name
        tensors[BEGIN + written] = values.T if there.transpose else values
        retrained.append(there.name)
    return tensors, layers, retrained


def _refuse_fused(folder: Path, files: WeightFiles) -> None:
    fused = next((name for name in files.names() if any(part in name for part in _FUSED)), None)
    if fused is not None:
        raise UserError(
            f"{folder} has {fused}: it was trained with query, key and value (or the feed-forward's halves) in one matrix, which "
            "Hugging Face's model keeps apart. Train it without --fuse_attention_qkv and --fuse_attention_ffn, or merge it: "
            "paddle-llm export"
        )


def _tied_head(folder: Path, base: str, family: str, files: WeightFiles) -> str | None:
    """Hugging Face's name of the head, where it is the embedding and the adapter has trained that."""
    if names.EMBEDDINGS[family] not in files:
        return None
    where, facts = _facts_of_base(folder, base)
    return names.tied_head(family, plain_configuration(where, find_family(facts), facts.raw), foreign=True)


def _lasting_base(folder: Path, base: str | Path | None, described: dict[str, Any]) -> str:
    """What is to be stored: the base's folder, or its name where it has none here; "": it has none at all.

    Raises:
        UserError: `base` is written like a folder, and there is none.
    """
    if base is None:
        return lasting_name(base_named_in(described) or "", folder)
    place = Path(base).expanduser()
    if place.is_dir():
        if not (place / MODEL_CONFIG).is_file() and (place / MODEL_FOLDER / MODEL_CONFIG).is_file():
            say(f"--base {base} is the output of a run: {place / 'model'} is taken")
            place = place / MODEL_FOLDER
        return lasting_name(str(place))
    if looks_local(str(base)):
        raise UserError(f"--base {base}: there is no such folder")
    return str(base)


def _check_shape(folder: Path, base: str, shape: dict[str, Any]) -> None:
    """Raise UserError where the base is another one than the adapter's; say so where that cannot be known."""
    where = find_base(base, folder)
    if where is None:
        say(f"--base {base} is not a folder here: it is stored as a model's name, and not compared with the adapter")
        return
    facts = read_model_facts(where)
    family = find_family(facts)
    found = base_shape(family.name, plain_configuration(where, family, facts.raw))
    differing = ", ".join(f"{key} {shape.get(key)}, not {found[key]}" for key in found if shape.get(key) != found[key])
    if differing:
        raise UserError(f"--base {where} is not what {folder} was trained over, which had {differing}")


def _which_base(folder: Path, named: str) -> str:
    """Return the base that was found by the name in the adapter's files, for a message; "" where there is none."""
    where = find_base(named, folder) if named else None
    return (
        f" The adapter was compared with the base that its {ADAPTER_CONFIG} names, {named}, as it is in {where}. Name another one with --base."
        if where
        else ""
    )


def _facts_of_base(folder: Path, base: str) -> tuple[Path, ModelFacts]:
    where = find_base(base, folder) if base else None
    if where is None:
        problem = why_not_found(base, folder) if base else f"{folder} stands over a base that it does not name"
        raise UserError(f"{problem}: its config.json is needed, name its folder by --base")
    return where, read_model_facts(where)
