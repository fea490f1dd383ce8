"""Every field of PEFT's `adapter_config.json` (LoraConfig of PEFT 0.17 to 0.21) and what this library does with it.

A field is in exactly one of three groups. *honoured*: its value has the same effect here as in PEFT. *harmless*: no
value of it changes what a trained adapter computes. *refused*: a value other than "off" is an error that names the
field. An unknown field is refused too, unless its value is "off".
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeGuard

HONOURED, HARMLESS, REFUSED = "honoured", "harmless", "refused"
PEFT_VERSIONS = ("0.17", "0.21")  # the first and the last release whose fields are listed


@dataclass(frozen=True)
class PeftField:
    """One field of adapter_config.json.

    Attributes:
        name: Key.
        group: HONOURED, HARMLESS or REFUSED.
        note: Effect of an honoured field, reason why a harmless one has no effect, or feature that a refused one needs.
        since: First minor release of PEFT with this field; "" for 0.17 or earlier, "before 0.17" if it was removed.
        values: Honoured values; () for all that PEFT allows.
    """

    name: str
    group: str
    note: str
    since: str = ""
    values: tuple[object, ...] = ()


_BIASES = ("none", "all", "lora_only")
_INITIALISATIONS = (True, False, None, "gaussian", "orthogonal", "eva")
_CHANGES_BASE = (
    "the adapter belongs to base weights that this initialisation has changed. Save it with "
    "save_pretrained(..., path_initial_model_for_weight_conversion=...), which makes it plain LoRA"
)

FIELDS: tuple[PeftField, ...] = (
    PeftField("peft_type", HONOURED, "kind of adapter; other kinds are refused", values=("LORA",)),
    PeftField("task_type", HONOURED, "task of the base model", values=("CAUSAL_LM", None)),
    PeftField("base_model_name_or_path", HONOURED, "the base: a folder, or a name that `--base` or MODEL replaces"),
    PeftField("r", HONOURED, "rank"),
    PeftField("lora_alpha", HONOURED, "scaling: alpha / r, with use_rslora alpha / sqrt(r)"),
    PeftField("lora_dropout", HONOURED, "dropout before the matrices, used when training continues"),
    PeftField("target_modules", HONOURED, "layers with LoRA: list of names, regular expression, all-linear or null"),
    PeftField("exclude_modules", HONOURED, "layers without LoRA: list of names or regular expression"),
    PeftField("layers_to_transform", HONOURED, "numbers of the transformer blocks with LoRA"),
    PeftField("layers_pattern", HONOURED, "name of the list of blocks that layers_to_transform counts"),
    PeftField("rank_pattern", HONOURED, "other ranks of some layers: name or regular expression -> rank"),
    PeftField("alpha_pattern", HONOURED, "other lora_alpha of some layers"),
    PeftField("use_rslora", HONOURED, "rank-stabilised scaling"),
    PeftField("use_dora", HONOURED, "DoRA: a trained magnitude for each output"),
    PeftField("bias", HONOURED, "trained biases of the base", values=_BIASES),
    PeftField("modules_to_save", HONOURED, "layers of the base that were trained directly"),
    PeftField(
        "init_lora_weights",
        HONOURED,
        "initialisation; refused if it changed the weights of the base",
        values=_INITIALISATIONS,
    ),
    PeftField("auto_mapping", HARMLESS, "class of the base model in Python"),
    PeftField("peft_version", HARMLESS, "version that wrote the adapter", "0.18"),
    PeftField("revision", HARMLESS, "revision of the base model on the Hub"),
    PeftField("inference_mode", HARMLESS, "whether PEFT freezes the adapter after loading"),
    PeftField("fan_in_fan_out", HARMLESS, "for GPT-2's Conv1D; PEFT ignores it for the layers of these families"),
    PeftField("megatron_core", HARMLESS, "name of a Python module; unused without megatron_config"),
    PeftField("qalora_group_size", HARMLESS, "unused without use_qalora"),
    PeftField("loftq_config", HARMLESS, "affects only the initial values, and only with init_lora_weights loftq"),
    PeftField("eva_config", HARMLESS, "affects only the initial values, and only with init_lora_weights eva"),
    PeftField("corda_config", HARMLESS, "affects only the initial values, and only with init_lora_weights corda"),
    PeftField(
        "lora_ga_config", HARMLESS, "affects only the initial values, and only with init_lora_weights lora_ga", "0.19"
    ),
    PeftField("velora_config", HARMLESS, "changes what the backward pass keeps in memory", "0.20"),
    PeftField("runtime_config", HARMLESS, "selects where PEFT computes; PEFT does not save it"),
    PeftField("merge_weights", HARMLESS, "whether evaluation merged the adapter in memory", "before 0.17"),
    PeftField("enable_lora", REFUSED, "LoRA on parts of a fused matrix", "before 0.17"),
    PeftField("megatron_config", REFUSED, "layers of Megatron"),
    PeftField("trainable_token_indices", REFUSED, "single rows of the embedding that were trained"),
    PeftField("layer_replication", REFUSED, "blocks of the base that are used several times"),
    PeftField("lora_bias", REFUSED, "biases in LoRA's second matrix"),
    PeftField("target_parameters", REFUSED, "LoRA on parameters that are not the weight of a layer"),
    PeftField("use_qalora", REFUSED, "LoRA on inputs pooled in groups (QALoRA)"),
    PeftField("alora_invocation_tokens", REFUSED, "LoRA that begins at a token (aLoRA)", "0.18"),
    PeftField("arrow_config", REFUSED, "routing over several adapters (Arrow)", "0.18"),
    PeftField("ensure_weight_tying", REFUSED, "adapters that embedding and head share", "0.18"),
    PeftField("use_bdlora", REFUSED, "block-diagonal matrices (BD-LoRA)", "0.19"),
    PeftField("monteclora_config", REFUSED, "LoRA drawn at random (MonteCLoRA)", "0.20"),
    PeftField("kasa_config", REFUSED, "a base without its smallest singular values (KaSA)", "0.21"),
)
BY_NAME = {field.name: field for field in FIELDS}


def table(group: str) -> str:
    """Return the fields of one group as a Markdown table, for docs/reference/adapters.md.

    Args:
        group: HONOURED, HARMLESS or REFUSED.
    """
    rows = [f"| field | PEFT | {'what it does' if group != HARMLESS else 'why it has no effect'} |", "|---|---|---|"]
    for field in (field for field in FIELDS if field.group == group):
        values = f": {', '.join(f'`{json.dumps(value)}`' for value in field.values)}" if field.values else ""
        rows.append(f"| `{field.name}` | {_releases(field.since)} | {field.note}{values} |")
    return "\n".join(rows)


def problems_of(adapter_config: dict[str, Any]) -> Iterator[str]:
    """Yield every unsupported setting of an adapter_config.json of PEFT, with the field's name and value.

    Args:
        adapter_config: Contents of the file.
    """
    kind = adapter_config.get("peft_type")
    if kind != "LORA":
        yield f"peft_type {kind!r} (only LORA is supported)"
        return  # other kinds have other fields
    for name, value in adapter_config.items():
        field = BY_NAME.get(name)
        if field is None and not is_off(value):
            yield f"{name} {_shown(value)} (not a field of PEFT {' to '.join(PEFT_VERSIONS)})"
        elif field is not None and field.group == REFUSED and not is_off(value):
            yield f"{name} {_shown(value)} ({field.note})"
        elif field is not None and field.values and not _one_of(value, field.values):
            yield f"{name} {_shown(value)} ({_why_not(field, value)})"
    yield from _wrong_types(adapter_config)


def unknown_and_off(adapter_config: dict[str, Any]) -> list[str]:
    """Return the unknown fields whose value is "off", which are ignored and reported."""
    return sorted(name for name, value in adapter_config.items() if name not in BY_NAME and is_off(value))


def without_effect(adapter_config: dict[str, Any]) -> dict[str, str]:
    """Return harmless fields that configure a feature -> why they have no effect; they are reported."""
    names = [name for name, value in adapter_config.items() if name.endswith("_config") and not is_off(value)]
    return {name: BY_NAME[name].note for name in names if name in BY_NAME and BY_NAME[name].group == HARMLESS}


def is_off(value: object) -> bool:
    """Return whether a value switches a feature off: null, false or empty."""
    return value is None or value is False or (isinstance(value, str | list | dict) and not value)


def _releases(since: str) -> str:
    return since if since.startswith("before") else f"from {since}" if since else "all"


def _one_of(value: object, values: tuple[object, ...]) -> bool:
    """Return whether `value` is one of `values`; 1 does not equal True."""
    return any(type(value) is type(other) and value == other for other in values)


def _why_not(field: PeftField, value: object) -> str:
    if field.name == "init_lora_weights" and isinstance(value, str):
        return _CHANGES_BASE
    return f"supported: {', '.join(map(repr, field.values))}"


def _wrong_types(adapter_config: dict[str, Any]) -> Iterator[str]:
    """Yield the honoured fields whose values PEFT would not accept."""
    tables = ("rank_pattern", "alpha_pattern")
    checks: dict[str, Callable[[object], bool]] = {
        "r": _is_positive_integer,
        "lora_alpha": _is_number,
        "lora_dropout": lambda value: value is None or (_is_number(value) and 0 <= value < 1),
        "use_rslora": lambda value: value is None or isinstance(value, bool),
        "use_dora": lambda value: value is None or isinstance(value, bool),
        "target_modules": _is_names,
        "exclude_modules": _is_names,
        "modules_to_save": lambda value: value is None or (isinstance(value, list) and _is_names(value)),
        "layers_pattern": _is_names,
        "layers_to_transform": lambda value: (
            value is None or all(_is_integer(one) for one in (value if isinstance(value, list) else [value]))
        ),
        "rank_pattern": lambda value: value is None or _is_table(value, _is_positive_integer),
        "alpha_pattern": lambda value: value is None or _is_table(value, _is_number),
    }
    for name, check in checks.items():
        if name in adapter_config and not check(adapter_config[name]):
            what = "a table of names and numbers" if name in tables else "a value that PEFT accepts"
            yield f"{name} {_shown(adapter_config[name])} (not {what})"
    if isinstance(adapter_config.get("target_modules"), str):
        for name in ("layers_to_transform", "layers_pattern"):
            if not is_off(adapter_config.get(name)):
                yield f"{name} {_shown(adapter_config[name])} (PEFT allows it only with a list of target_modules)"


def _is_integer(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_positive_integer(value: object) -> bool:
    return _is_integer(value) and value > 0


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")


def _is_names(value: object) -> bool:
    return value is None or isinstance(value, str) or all(isinstance(one, str) for one in _listed(value))


def _listed(value: object) -> list[object]:
    return value if isinstance(value, list) else [value]


def _is_table(value: object, is_value: Callable[[object], bool]) -> bool:
    return isinstance(value, dict) and all(is_value(one) for one in value.values())


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
