"""Compares the configuration and tokenizer of an export with those of its source.

These may differ without an effect on the logits of a few short texts: the epsilon of a norm, positions beyond the
prompts, end tokens, ids of other texts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paddle_llm.config.local_files.model_folder import read_model_facts
from paddle_llm.core.artifacts import GENERATION_CONFIG, TOKENIZER_JSON
from paddle_llm.core.errors import UserError
from paddle_llm.data.tokenizers.text_codec import open_codec
from paddle_llm.export.source.source import Source
from paddle_llm.families import Family
from paddle_llm.families.shape import find_family
from paddle_llm.generation.prompts import encode_text
from paddle_llm.generation.stop_tokens import ids_in
from paddle_llm.models.build import plain_configuration
from paddle_llm.models.configuration.to_hugging_face import in_vocabulary
from paddle_llm.models.weights.names import is_tied

if TYPE_CHECKING:
    from paddlenlp.transformers import PretrainedConfig

# Parts of the names of keys that only training reads.
_TRAINING_KEYS = (
    "dropout", "initializer", "init_weights", "seq_length", "long_sequence", "dpo", "checkpoint", "parallel",
    "pretraining_tp", "slow_but_exact", "use_", "_fast_entry", "mp_degree",
)  # fmt: skip
_UNDECLARED = {"rope_scaling", "bos_token_id"}


def configuration_differences(source: Source, folder: Path) -> list[str]:
    """Return how the network and end tokens of the folder's config.json differ from the source's."""
    try:
        facts = read_model_facts(folder)
        family = find_family(facts)
        if family.name != source.family.name:
            return [f"config.json describes {family.title}, the source is {source.family.title}"]
        config = plain_configuration(folder, family, facts.raw)
    except UserError as error:
        return [str(error)]
    ours, theirs = _comparable(source.config), _comparable(config)
    found = [
        f"{name} is {theirs.get(name)!r} instead of {ours.get(name)!r}"
        for name in _read_by_the_network(family)
        if ours.get(name) != theirs.get(name)
    ]
    if is_tied(family.name, config) != is_tied(family.name, source.config):
        found.append("tie_word_embeddings differs from the source")
    return found + _end_differences(source, folder, facts.raw)


def _comparable(config: PretrainedConfig) -> dict[str, Any]:
    """Return a configuration's values; an id outside the vocabulary counts as none."""
    return _with_plain_rope(config) | {"bos_token_id": in_vocabulary(config.bos_token_id, config.vocab_size)}


def _with_plain_rope(config: PretrainedConfig) -> dict[str, Any]:
    """Return a configuration's values with PaddleNLP's own kinds of RoPE scaling in the usual form.

    Its "ntk" becomes a larger base and more positions; no other scaling applies together with llama3's.
    """
    values = config.to_dict()
    kind, factor = values.get("rope_scaling_type"), values.get("rope_scaling_factor")
    llama3 = (values.get("rope_scaling") or {}).get("rope_type") == "llama3"
    if kind == "ntk" and not llama3:
        from paddlenlp.transformers.llama.modeling import LlamaNTKScalingRotaryEmbedding

        width = config.hidden_size // config.num_attention_heads
        values["rope_theta"] = LlamaNTKScalingRotaryEmbedding(width, 1, config.rope_theta, factor).base
        values["max_position_embeddings"] = int(config.max_position_embeddings * factor)
    if kind in (None, "ntk") or llama3:
        values |= {name: None for name in ("rope_scaling_type", "rope_scaling_factor") if name in values}
    return values


def _read_by_the_network(family: Family) -> list[str]:
    """Return the keys that the family's class declares, except those that only training reads."""
    from paddlenlp.transformers import PretrainedConfig

    own = set(family.load("config_class")().to_dict()) - set(PretrainedConfig().to_dict())
    return sorted(name for name in own | _UNDECLARED if not any(word in name for word in _TRAINING_KEYS))


def _end_differences(source: Source, folder: Path, raw: dict[str, Any]) -> list[str]:
    expected, stated = set(source.stop_ids()), stated_ends(folder, raw)
    missing = sorted(expected - stated)
    return (
        [f"texts do not end at {missing}, as those of the source do (eos_token_id is {sorted(stated)})"]
        if missing
        else []
    )


def stated_ends(folder: Path, raw: dict[str, Any]) -> set[int]:
    """Return the end ids that transformers reads: of generation_config.json if it has any, else of config.json."""
    file = folder / GENERATION_CONFIG
    stated = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id") if file.is_file() else None
    return set(ids_in(raw.get("eos_token_id") if stated is None else stated))


def tokenizer_differences(folder: Path, texts: Sequence[str], ids: Sequence[Sequence[int]]) -> tuple[str, list[str]]:
    """Return the library that read the folder's tokenizer, and the texts to which it gives other ids."""
    try:
        engine, encode = _open_encoder(folder)
        return engine, other_ids(texts, ids, [encode(text) for text in texts])
    except UserError as error:
        return "files", [str(error)]


def other_ids(texts: Sequence[str], ids: Sequence[Sequence[int]], found: Sequence[Sequence[int]]) -> list[str]:
    """Return a message for each text whose ids differ."""
    triples = zip(texts, ids, found, strict=True)
    return [f"the ids of {text!r} differ" for text, expected, actual in triples if list(expected) != list(actual)]


def _open_encoder(folder: Path) -> tuple[str, Callable[[str], Sequence[int]]]:
    """Return the library that reads the folder's tokenizer, and the function that encodes a text."""
    file = folder / TOKENIZER_JSON
    if file.is_file():
        import tokenizers

        tokenizer = tokenizers.Tokenizer.from_file(str(file))
        return f"tokenizers {tokenizers.__version__}", lambda text: tokenizer.encode(text).ids
    codec = open_codec(str(folder))
    return "sentencepiece", lambda text: encode_text(codec, text).ids
