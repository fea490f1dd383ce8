"""`Source`: a trained model as full tensors under canonical names, read one at a time.

Query, key and value (and the two halves of the feed-forward network) are separate tensors, also if the network fuses
them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from paddle_llm.core.errors import UserError
from paddle_llm.families import Family
from paddle_llm.families.facts import ModelFacts
from paddle_llm.generation.stop_tokens import ids_in, known_ids, stop_ids_of_tokenizer
from paddle_llm.models.weights.names import fused_pieces

if TYPE_CHECKING:
    from paddlenlp.transformers import PretrainedConfig


class Tensors(Protocol):
    """Full tensors by canonical name, in PaddleNLP's layout ([in, out] matrices), without vocabulary padding."""

    def names(self) -> list[str]:
        """Return the canonical names."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor."""

    def dtype(self, name: str) -> str:
        """Return the stored type: "float32", "bfloat16" or "float16"."""

    def read(self, name: str) -> np.ndarray:
        """Return the whole tensor, which must not be modified and may be mapped; bfloat16 as uint16 bits."""


@dataclass(frozen=True)
class Source:
    """A model to export: its tensors, configuration, tokenizer and chat template.

    Attributes:
        folder: Folder of the weights.
        family: Model family.
        facts: Facts from its config.json, with the vocabulary without padding.
        config: PaddleNLP's configuration in one process, with nothing fused and the vocabulary without padding.
        tokenizer: Folder with tokenizer_config.json; None if there is no tokenizer.
        generation: Contents of generation_config.json; {} without one.
        template: --chat_template of training; None: not recorded.
        shapes: Canonical name -> shape, in the network's order, without a tied head.
        tensors: Stored tensors, fused or not.
        adapter: Adapter that is merged into the weights; None: none.
        template_folder: Folder that records the chat template of training; None: there is no record.
    """

    folder: Path
    family: Family
    facts: ModelFacts
    config: PretrainedConfig
    tokenizer: Path | None
    generation: dict[str, Any]
    template: str | None
    shapes: dict[str, tuple[int, ...]]
    tensors: Tensors
    adapter: Path | None = None
    template_folder: Path | None = None

    def names(self) -> list[str]:
        """Return the canonical names (models/weights/names.py) in the network's order, without a tied head."""
        return list(self.shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a shape in PaddleNLP's layout ([in, out] for a matrix), without vocabulary padding."""
        return self.shapes[name]

    def dtype(self, name: str) -> str:
        """Return the stored type of a weight: "float32", "bfloat16" or "float16"."""
        return self.tensors.dtype(self._stored(name)[0])

    def read(self, name: str) -> np.ndarray:
        """Return the whole tensor, which must not be modified and may be mapped; bfloat16 as uint16 bits."""
        if name in self.tensors.names():
            return self.tensors.read(name)
        parts = []
        for piece in fused_pieces(self.family.name, name, self.config):
            whole = self.tensors.read(piece.source)
            parts.append(whole[:, piece.source_start : piece.source_start + piece.stop - piece.start])
        return np.concatenate(parts, axis=1)

    def stop_ids(self) -> list[int]:
        """Return each id at which `paddle-llm generate` ends a text of this model, limited to the vocabulary."""
        ids = [*ids_in(self.generation.get("eos_token_id")), *ids_in(self.config.eos_token_id)]
        if self.tokenizer is not None:
            ids += stop_ids_of_tokenizer(self.tokenizer, self.template, self.template_folder)
        return known_ids(ids, self.facts.vocab_size)

    def _stored(self, name: str) -> list[str]:
        """Return the stored tensors that a weight is read from.

        Raises:
            UserError: If one is missing.
        """
        if name in self.tensors.names():
            return [name]
        stored = [piece.source for piece in fused_pieces(self.family.name, name, self.config)]
        if not stored or not set(stored) <= set(self.tensors.names()):
            raise UserError(f"{self.folder} is incomplete: the weight {name} is missing. Copy the model again.")
        return stored
