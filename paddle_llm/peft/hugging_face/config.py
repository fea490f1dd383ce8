"""Converts between `adapter_config.json` of Hugging Face's PEFT and this library's `Method`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from paddle_llm.core.artifacts import ADAPTER_CONFIG
from paddle_llm.core.console import say_once
from paddle_llm.core.errors import UserError
from paddle_llm.models.weights import names
from paddle_llm.peft.hugging_face.fields import problems_of, unknown_and_off, without_effect
from paddle_llm.peft.hugging_face.format import PeftFile
from paddle_llm.peft.hugging_face.targets import is_target, pattern_value, report_invalid_patterns
from paddle_llm.peft.method import Method

_IN_A_LIST = re.compile(r"(?:.*\.)?([a-z]+)\.(\d+)\.(.+)")  # layers.7.self_attn.q_proj
_RANK, _ALPHA = 8, 8  # PEFT's defaults of r and lora_alpha


def check_settings(folder: Path, adapter_config: dict[str, Any]) -> None:
    """Refuse an adapter of PEFT that uses an unsupported feature. Reads no tensors.

    Args:
        folder: Adapter folder.
        adapter_config: Contents of its adapter_config.json.

    Raises:
        UserError: If a field is unknown or refused, or has an unsupported value; the message names all such fields.
    """
    problems = list(problems_of(adapter_config))
    if problems:
        raise UserError(
            f"{folder / ADAPTER_CONFIG} uses unsupported settings: {'; '.join(problems)}. Use plain LoRA or DoRA, or merge the "
            "adapter into its base with PEFT (merge_and_unload)."
        )
    ignored = unknown_and_off(adapter_config)
    if ignored:
        say_once(f"{folder / ADAPTER_CONFIG}: unknown fields that are switched off are ignored: {', '.join(ignored)}")
    for name, reason in without_effect(adapter_config).items():
        say_once(f"{folder / ADAPTER_CONFIG}: {name} is ignored: it {reason}")


def method_of_peft(
    folder: Path, adapter_config: dict[str, Any], base: dict[str, Any] | None = None, *, allow_pickle: bool = False
) -> Method:
    """Convert the settings of an adapter of PEFT.

    Args:
        folder: Adapter folder.
        adapter_config: Contents of its adapter_config.json.
        base: `base_shape` of the network that it is attached to; None: layers are named one by one.
        allow_pickle: Whether adapter_model.bin may be read.

    Raises:
        UserError: If the adapter uses an unsupported feature, or its files are incomplete.
    """
    check_settings(folder, adapter_config)
    files = PeftFile(folder, adapter_config, allow_pickle=allow_pickle)
    rank, alpha = adapter_config.get("r", _RANK), float(adapter_config.get("lora_alpha", _ALPHA))
    rank_pattern, alpha_pattern = adapter_config.get("rank_pattern"), adapter_config.get("alpha_pattern")
    with report_invalid_patterns(folder):
        if base is None:
            _check_targets(folder, adapter_config, files)
        ranks = {layer: pattern_value(rank_pattern, layer, rank) for layer in files.lora}
        alphas = {layer: float(pattern_value(alpha_pattern, layer, alpha)) for layer in files.lora}
    for layer, expected in ranks.items():
        for part, axis in (("lora_A", 0), ("lora_B", 1)):
            shape = files.shape(f"{layer}.{part}")
            if len(shape) != 2 or shape[axis] != expected:
                raise UserError(
                    f"{folder}: {part} of {layer} has shape {list(shape)}, but {ADAPTER_CONFIG} gives rank {expected} (r {rank}, "
                    f"rank_pattern {rank_pattern or {}}). The two files do not belong together: fetch both again."
                )
    return Method(
        "lora",
        rank=rank,
        alpha=alpha,
        dropout=float(adapter_config.get("lora_dropout") or 0.0),
        targets=layer_patterns(files.lora, base),
        rslora=bool(adapter_config.get("use_rslora")),
        dora=bool(adapter_config.get("use_dora")),
        ranks=layer_exceptions(ranks, rank, base),
        alphas=layer_exceptions(alphas, alpha, base),
        modules_to_save=tuple(
            dict.fromkeys(_pattern(key, base) for key in files.weights if not _is_copy(files, key, files.weights))
        ),
    )


def _check_targets(folder: Path, adapter_config: dict[str, Any], files: PeftFile) -> None:
    """Check without the base that the layers in the file are those of adapter_config.json."""
    for layer in files.lora:
        if not is_target(adapter_config, layer, family=None, is_linear=layer not in files.embeddings, is_head=False):
            raise UserError(
                f"{folder}: {files.file.name} has LoRA for {layer}, which {ADAPTER_CONFIG} does not name (target_modules, "
                f"exclude_modules, modules_to_save, layers_to_transform). Fetch both files again."
            )


def _is_copy(files: PeftFile, key: str, others: list[str]) -> bool:
    """Return whether a weight is the tied head of the base, so that the file contains its values twice."""
    return key == names.HUGGING_FACE_TIED_HEAD and any(
        other != key and files.shape(other) == files.shape(key) and np.array_equal(files.view(other), files.view(key))
        for other in others
    )


def layer_patterns(layers: list[str], base: dict[str, Any] | None) -> tuple[str, ...]:
    """Return patterns for `Method.targets` that match these layers and no others.

    Args:
        layers: Names of layers, Hugging Face's or canonical ones.
        base: `base_shape` of the base; None: layers are named one by one.
    """
    found = []
    for rest, numbers in _by_kind(layers, base).items():
        if numbers is None:
            found.append(rest)
            continue
        stack, _, layer = rest.partition("/")
        if _is_everywhere(numbers, base):
            found.append(layer)
        else:
            found.append(rf".*\.{stack}\.({'|'.join(map(str, sorted(numbers)))})\.{re.escape(layer)}")
    return tuple(found)


def _by_kind(layers: list[str], base: dict[str, Any] | None) -> dict[str, list[int] | None]:
    """Group layers: "layers/self_attn.q_proj" -> numbers of blocks; pattern of a layer outside the blocks -> None."""
    kinds: dict[str, list[int] | None] = {}
    for layer in layers:
        match = _IN_A_LIST.fullmatch(names.paddlenlp_infixes(layer))
        if match is None:
            kinds[_pattern(f"{layer}.weight", base).removesuffix(".weight")] = None
        else:
            numbers = kinds.setdefault(f"{match.group(1)}/{match.group(3)}", [])
            assert numbers is not None
            numbers.append(int(match.group(2)))
    return kinds


def _is_everywhere(numbers: list[int], base: dict[str, Any] | None) -> bool:
    return base is not None and sorted(numbers) == list(range(base["layers"]))


def layer_exceptions(
    values: Mapping[str, Any], default: Any, base: dict[str, Any] | None
) -> tuple[tuple[str, Any], ...]:
    """Return (pattern, value) of the layers whose value is not the default; each pattern matches only those layers.

    Args:
        values: Value by name of a layer.
        default: Value of all other layers.
        base: As in `layer_patterns`.
    """
    found = []
    for value in dict.fromkeys(value for value in values.values() if value != default):
        layers = [layer for layer, other in values.items() if other == value]
        found += [(pattern, value) for pattern in layer_patterns(layers, base)]
    return tuple(found)


def _pattern(key: str, base: dict[str, Any] | None) -> str:
    """Return the pattern of a weight of the base for `Method.modules_to_save`."""
    if base is not None:
        family = base["family"]
        for known in (names.EMBEDDINGS[family], names.HEADS.get(family, "")):
            if known and key in names.hugging_face_candidates(family, names.hugging_face(family, known, 2).name):
                return known
    match = _IN_A_LIST.fullmatch(names.paddlenlp_infixes(key))
    return f"{match.group(1)}.{match.group(2)}.{match.group(3)}" if match else ".".join(key.split(".")[-2:])


def config_of_peft(
    method: Method, layers: Mapping[str, str], retrained: list[str], base: str, blocks: int
) -> dict[str, Any]:
    """Return adapter_config.json in PEFT's format.

    Args:
        method: The settings.
        layers: Hugging Face's name of each layer with LoRA -> its canonical name.
        retrained: Hugging Face's names of the trained weights of the base.
        base: Value of `base_model_name_or_path`.
        blocks: Number of transformer blocks of the base.
    """
    by_last_part: dict[str, list[str]] = {}
    for layer in layers:
        by_last_part.setdefault(layer.rpartition(".")[2], []).append(layer)
    everywhere = all(_in_every_block(found, blocks) for found in by_last_part.values())
    modules = {name.rpartition(".")[0] for name in retrained if name.endswith(".weight")} - set(layers)
    with_bias = any(name.endswith(".bias") and name.rpartition(".")[0] not in modules for name in retrained)
    return {
        "alpha_pattern": {
            layer: _number(method.alpha_of(path))
            for layer, path in layers.items()
            if method.alpha_of(path) != method.scale_alpha
        },
        "base_model_name_or_path": base,
        "bias": "all" if with_bias else "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": _number(method.scale_alpha),
        "lora_dropout": method.dropout,
        "modules_to_save": sorted(modules) or None,
        "peft_type": "LORA",
        "r": method.rank,
        "rank_pattern": {
            layer: method.rank_of(path) for layer, path in layers.items() if method.rank_of(path) != method.rank
        },
        "target_modules": sorted(by_last_part) if everywhere else sorted(layers),
        "task_type": "CAUSAL_LM",
        "use_dora": method.dora,
        "use_rslora": method.rslora,
    }


def _number(value: float) -> float:
    return int(value) if float(value).is_integer() else value


def _in_every_block(layers: list[str], blocks: int) -> bool:
    """Return whether these layers are one of each block, so that their common ending matches exactly them."""
    found = [_IN_A_LIST.fullmatch(layer) for layer in layers]
    rests = {match.group(3) for match in found if match}
    return len(rests) == 1 and sorted(int(match.group(2)) for match in found if match) == list(range(blocks))
