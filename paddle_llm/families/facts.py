"""The shape of a model, read from its config.json."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from paddle_llm.families.positions import position_limit, rope_scaling


@dataclass(frozen=True)
class ModelFacts:
    """Shape of one model.

    Attributes:
        model_type: Name of the family: "llama", "chatglm", "chatglm_v2", ...; also of one that is not supported.
        architectures: Class names as written in the file.
        hidden_size: Width of the hidden states.
        num_hidden_layers: Number of layers.
        num_attention_heads: Number of query heads.
        num_key_value_heads: Number of key-value heads; the number of query heads without grouped-query attention.
        head_dim: Width of one attention head.
        intermediate_size: Width of the MLP.
        vocab_size: Number of rows of the token embedding.
        max_position_embeddings: Longest sequence in tokens; None if positions are not limited (ALiBi) or the file does not
            have the field.
        tie_word_embeddings: Whether the head is the token embedding.
        raw: All fields of the file.
    """

    model_type: str
    architectures: tuple[str, ...]
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    max_position_embeddings: int | None
    tie_word_embeddings: bool
    raw: dict[str, Any] = field(repr=False, hash=False, default_factory=dict)

    @property
    def rope_is_scaled(self) -> bool:
        """Whether RoPE scaling is configured, so that positions beyond max_position_embeddings may work."""
        return rope_scaling(self.raw)[0] is not None

    @property
    def position_limit(self) -> int | None:
        """Longest sequence in tokens, RoPE scaling included; None if any length works (ALiBi, dynamic NTK)."""
        if self.max_position_embeddings is None:
            return None
        return position_limit({**self.raw, "max_position_embeddings": self.max_position_embeddings})
