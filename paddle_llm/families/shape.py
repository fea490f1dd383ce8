"""Read the shape of a model from the fields of its config.json, under the names of Hugging Face or PaddleNLP."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from paddle_llm.core.errors import UserError
from paddle_llm.families import FAMILIES, Family
from paddle_llm.families.facts import ModelFacts
from paddle_llm.families.positions import LENGTH_KEYS

# Names of each number in the configurations of all families. The first one that is present counts.
_KEYS: dict[str, tuple[str, ...]] = {
    "hidden_size": ("hidden_size", "n_embed", "n_embd"),
    "num_hidden_layers": ("num_hidden_layers", "num_layers", "n_layer"),
    "num_attention_heads": ("num_attention_heads", "n_head"),
    "num_key_value_heads": ("num_key_value_heads", "multi_query_group_num"),
    "head_dim": ("head_dim", "kv_channels"),
    "intermediate_size": ("intermediate_size", "ffn_hidden_size", "inner_hidden_size", "ffn_dim", "n_inner"),
    "vocab_size": ("padded_vocab_size", "vocab_size"),
    "max_position_embeddings": LENGTH_KEYS,
    "tie_word_embeddings": ("tie_word_embeddings",),
}
_REQUIRED = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")
# Beginnings of class names, for messages about families that are not supported.
_UNSUPPORTED_ARCHITECTURES = ("gpt", "qwen", "gemma")
_LARGEST = 100_000_000  # above every size of a published model; a larger number would exhaust the memory


def facts_from_dict(raw: dict[str, Any], *, where: str) -> ModelFacts:
    """Return the shape that the fields of a config.json describe.

    Args:
        raw: Fields.
        where: Path of the file, for messages.

    Raises:
        UserError: If a number that every family needs is missing or invalid.
    """
    named = raw.get("architectures") or []
    if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
        raise UserError(f"{where}: architectures must be a list of class names, not {named!r}. Correct it.")
    name = family_of(raw)
    family = FAMILIES.get(name)
    numbers = {key: _number(raw, key, where) for key in _KEYS if key != "tie_word_embeddings"}
    if family and not family.config_json.key_value_heads(raw):
        numbers["num_key_value_heads"] = None
    factor = family.config_json.feed_forward_factor if family else None
    if numbers["intermediate_size"] is None and numbers["hidden_size"] and factor:
        numbers["intermediate_size"] = factor * numbers["hidden_size"]
    missing = [key for key in _REQUIRED if numbers[key] is None]
    if missing:
        raise UserError(
            f"{where} does not have {', '.join(missing)}, which every language model has. Give the config.json of a language model."
        )
    heads, hidden = numbers["num_attention_heads"] or 0, numbers["hidden_size"] or 0
    unlimited = family is not None and family.network.positions == "ALiBi"
    return ModelFacts(
        model_type=name,
        architectures=tuple(named),
        hidden_size=hidden,
        num_hidden_layers=numbers["num_hidden_layers"] or 0,
        num_attention_heads=heads,
        num_key_value_heads=numbers["num_key_value_heads"] or heads,
        head_dim=numbers["head_dim"] or hidden // heads,
        intermediate_size=numbers["intermediate_size"] or 0,
        vocab_size=numbers["vocab_size"] or 0,
        max_position_embeddings=None if unlimited else numbers["max_position_embeddings"],
        tie_word_embeddings=_tied(raw, name),
        raw=raw,
    )


def find_family(facts: ModelFacts) -> Family:
    """Return the family of a model.

    Raises:
        UserError: If the family is not supported; the message names those that are.
    """
    if facts.model_type in FAMILIES:
        return FAMILIES[facts.model_type]
    known = ", ".join(f"{family.title} ({family.name})" for family in FAMILIES.values())
    raise UserError(
        f"model_type = {facts.model_type!r} is not supported. Use a model of one of these families: {known}."
    )


def family_of(raw: Mapping[str, Any]) -> str:
    """Return the name of the family that a config.json describes; another name if the family is not supported."""
    name = str(raw.get("model_type") or "").lower()
    if not name:
        architecture = str((raw.get("architectures") or [""])[0]).lower()
        known = [key for family in FAMILIES.values() for key in family.config_json.model_types]
        known = sorted([*known, *_UNSUPPORTED_ARCHITECTURES], key=len, reverse=True)
        name = next((key for key in known if architecture.startswith(key)), "unknown")
    family = next((one for one in FAMILIES.values() if name in one.config_json.model_types), None)
    return family.config_json.identify(raw) if family else name


def with_numbers(raw: dict[str, Any], numbers: dict[str, int]) -> dict[str, Any]:
    """Return a config.json in which numbers are replaced, under the names that it already has. Absent fields are not added.

    Args:
        raw: Fields of the config.json.
        numbers: New values by the names of `ModelFacts`.
    """
    return raw | {key: value for name, value in numbers.items() for key in _KEYS[name] if key in raw}


def _tied(raw: Mapping[str, Any], name: str) -> bool:
    family = FAMILIES.get(name)
    if family is None or family.weights.tie == "configured":
        return bool(raw.get("tie_word_embeddings", False))
    return family.weights.tie == "always"


def _number(raw: Mapping[str, Any], name: str, where: str) -> int | None:
    for key in _KEYS[name]:
        value = raw.get(key)
        if value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise UserError(f"{where}: {key} must be a whole number of at least 1, not {value!r}. Correct it.")
        if value > _LARGEST:
            raise UserError(f"{where}: {key} = {value} is larger than in any published model. Correct it.")
        return value
    return None
