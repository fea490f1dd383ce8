"""Shrink a config.json: its numbers become small and keep their relations to each other and to the layout.

The tensor and pipeline degrees divide the same numbers as in the real model. There are fewer key-value heads than query
heads or tensor ranks if that is so in the real model, and a sequence has as many tokens as the table has positions, fewer
or more. All other keys are kept.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from paddle_llm.config.layout import Layout
from paddle_llm.families import FAMILIES
from paddle_llm.families.facts import ModelFacts
from paddle_llm.families.shape import facts_from_dict, with_numbers

SEQUENCE, VOCABULARY, LAYERS_PER_STAGE = 32, 256, 2


@dataclass(frozen=True)
class SmallModel:
    """A small model.

    Attributes:
        facts: Facts of the small config.json, which is `facts.raw`.
        sequence: Tokens per sample.
        vocabulary_map: Map from the real vocabulary to the small one.
    """

    facts: ModelFacts
    sequence: int
    vocabulary_map: VocabularyMap


class VocabularyMap:
    """Map from the token ids of a large vocabulary to a small one. Each special id keeps a separate id.

    Attributes:
        special: Id in the small vocabulary of each special id.

    Args:
        special: Special ids of the large vocabulary.
        size: Size of the small vocabulary.
    """

    def __init__(self, special: list[int], size: int):
        targets: dict[int, int] = {}
        top = size - 1
        for token in sorted(special):
            if token < size // 2:
                targets[token] = token
        for token in sorted(special, reverse=True):
            if token not in targets:
                targets[token], top = top, top - 1
        self.special = targets
        self._ordinary = np.setdiff1d(np.arange(size), list(targets.values()))

    def __call__(self, ids: np.ndarray) -> np.ndarray:
        """Map ids to the small vocabulary.

        Args:
            ids: Ids of the large vocabulary, int64, of any shape.
        """
        mapped = self._ordinary[ids % len(self._ordinary)]
        for token, target in self.special.items():
            mapped[ids == token] = target
        return mapped

    @property
    def ordinary_ids(self) -> np.ndarray:
        """Ids of the small vocabulary that are not special."""
        return self._ordinary


def small_model(facts: ModelFacts, layout: Layout, sequence: int, tensor: int, stages: int, virtual: int) -> SmallModel:
    """Return the small model that represents a real one.

    Args:
        facts: Facts of the real model.
        layout: Real layout.
        sequence: Tokens per sample of the real run.
        tensor: Largest tensor-parallel degree of the sub-layouts.
        stages: Largest number of pipeline stages of the sub-layouts.
        virtual: Largest number of virtual stages of the sub-layouts.
    """
    heads, key_value_heads = _heads(facts, layout.tensor, tensor)
    width = 16 if heads <= 8 else 8  # ChatGLM's rotary embeddings need a multiple of 4
    length = _with_same_divisibility(SEQUENCE, min(sequence, SEQUENCE), sequence, layout.tensor, tensor)
    size = _with_same_divisibility(
        VOCABULARY, min(facts.vocab_size, VOCABULARY), facts.vocab_size, layout.tensor, tensor
    )
    hidden = heads * width
    numbers = {
        "hidden_size": hidden,
        "num_hidden_layers": _layers(facts.num_hidden_layers, layout, stages, virtual),
        "num_attention_heads": heads,
        "num_key_value_heads": key_value_heads,
        "head_dim": width,
        "intermediate_size": max(round(hidden * facts.intermediate_size / facts.hidden_size / tensor), 1) * tensor,
        "vocab_size": size,
        "max_position_embeddings": _positions(facts, sequence, length),
    }
    vocabulary_map = VocabularyMap(list(_special_ids(facts.raw)), size)
    raw = with_numbers(facts.raw, numbers) | {
        key: _mapped(value, vocabulary_map)
        for key, value in facts.raw.items()
        if key.endswith(("_token_id", "_token_ids"))
    }
    if raw.get("word_embed_proj_dim"):  # OPT: the embeddings' own width
        raw["word_embed_proj_dim"] = hidden if raw["word_embed_proj_dim"] == facts.hidden_size else hidden // 2
    window = FAMILIES[facts.model_type].config_json.attention_window if facts.model_type in FAMILIES else None
    if window and raw.get(window):  # the same share of the sequence
        raw[window] = -(-raw[window] * length // sequence)
    return SmallModel(facts_from_dict(raw, where="the rehearsed config.json"), length, vocabulary_map)


def _heads(facts: ModelFacts, real_tensor: int, tensor: int) -> tuple[int, int]:
    """Return the numbers of heads and key-value heads: the smallest ones with the same relations to the ranks."""
    heads, key_value_heads = facts.num_attention_heads, facts.num_key_value_heads
    if key_value_heads == heads:
        # BLOOM's ALiBi slopes have one formula for powers of two and another one for other numbers.
        per_rank = 1 if heads == real_tensor else 2 if heads & (heads - 1) == 0 else 3
        return per_rank * tensor, per_rank * tensor
    if key_value_heads % real_tensor == 0:
        small = tensor if key_value_heads == real_tensor else 2 * tensor
        return 2 * small, small
    # If the ranks do not divide them, PaddleNLP keeps all key-value heads on every rank.
    small = min(key_value_heads, max(tensor // 2, 1)) if key_value_heads < real_tensor else 2 * tensor - 1
    return 2 * math.lcm(tensor, small), small


def _layers(count: int, layout: Layout, stages: int, virtual: int) -> int:
    if layout.pipeline == 1 or stages == 1:
        return min(count, LAYERS_PER_STAGE)
    if virtual > 1:
        return stages * virtual
    if count % layout.pipeline:
        return LAYERS_PER_STAGE * stages - 1
    return stages * min(count // layout.pipeline, LAYERS_PER_STAGE)


def _with_same_divisibility(largest: int, wanted: int, real: int, real_tensor: int, tensor: int) -> int:
    """Return a number near `wanted` that `tensor` divides if and only if `real_tensor` divides `real`."""
    divides = real % real_tensor == 0
    return next(n for n in (*range(wanted, 1, -1), *range(wanted, 2 * largest)) if (n % tensor == 0) == divides)


def _positions(facts: ModelFacts, sequence: int, length: int) -> int:
    """Return as many positions as a sequence has tokens, more, or (with scaled rotary embeddings) fewer."""
    limit = facts.max_position_embeddings
    if limit == sequence:
        return length
    if limit is None or limit > sequence:
        return 2 * length
    return -(-length * limit // sequence)  # the same share of the sequence, so the same scaling covers it


def _special_ids(raw: dict[str, Any]) -> set[int]:
    values = [value for key, value in raw.items() if key.endswith(("_token_id", "_token_ids"))]
    flat = [one for value in values for one in (value if isinstance(value, list) else [value])]
    return {one for one in flat if isinstance(one, int) and not isinstance(one, bool) and one >= 0}


def _mapped(value: Any, vocabulary_map: VocabularyMap) -> Any:
    """Return the value of a key of special ids in the small vocabulary; unknown values unchanged."""
    if isinstance(value, list):
        return [_mapped(one, vocabulary_map) for one in value]
    return vocabulary_map.special.get(value, value) if isinstance(value, int) else value
