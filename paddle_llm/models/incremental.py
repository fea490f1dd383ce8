"""Process prompts and then one token at a time, with a cache of keys and values: one interface for all families.

PaddleNLP's networks (3.0.0b4) have a cache under different names and in different shapes, and each family prepares
masks and positions differently, from the whole text at each token. Here the differences are fields of
`families.spec.Network`, and masks and positions are computed once.

Shapes: B rows, S tokens of the longest prompt, s tokens of one forward pass, T tokens read so far, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import paddle

from paddle_llm.families import FAMILIES
from paddle_llm.models.head import logits_at_last_position
from paddle_llm.models.prompt import Prompt
from paddle_llm.models.token_positions import PaddedPrompts
from paddle_llm.models.weights.vocabulary import real_vocab_size

if TYPE_CHECKING:
    from paddle_llm.models.protocols import LanguageModel


class IncrementalNetwork:
    """One batch of prompts in a network.

    Args:
        model: Network in evaluation mode whose logits are not split over tensor-parallel ranks.
        family: Name of its family.
        prompts: Prompts of at least one token; shorter ones are padded on the left.
        max_new_tokens: Maximum number of tokens that will follow.
    """

    def __init__(self, model: LanguageModel, family: str, prompts: Sequence[Prompt], max_new_tokens: int):
        self._model, self._family, self._spec = model, family, FAMILIES[family].network
        self._vocabulary = real_vocab_size(model.config)
        self._padded = padded = PaddedPrompts(prompts, max_new_tokens, block_positions=self._spec.block_positions)
        self._tokens_BT = paddle.to_tensor(padded.tokens_BT)
        self._positions = paddle.to_tensor(padded.positions) if self._spec.takes_positions else None
        self._read, self._cache = 0, None

    def read_prompts(self) -> paddle.Tensor:
        """Return logits [B, V] of the first token after each prompt."""
        with logits_at_last_position(self._model, self._family):
            return self._forward(paddle.to_tensor(self._padded.ids_BS))[:, -1].astype("float32")

    def read_all(self) -> paddle.Tensor:
        """Return logits [B, S, V] of the token after each token of the prompts, in the type of the network."""
        return self._forward(paddle.to_tensor(self._padded.ids_BS))

    def read(self, tokens_B: paddle.Tensor) -> paddle.Tensor:
        """Return logits [B, V] of the token after one more token of each row."""
        return self._forward(tokens_B.unsqueeze(1))[:, -1].astype("float32")

    def keep_rows(self, rows: paddle.Tensor) -> None:
        """Continue with these rows, in this order; a row may occur several times."""
        self._tokens_BT = paddle.index_select(self._tokens_BT, rows)
        if self._positions is not None:
            self._positions = paddle.index_select(self._positions, rows)
        axis = self._spec.cache_row_axis
        self._cache = _map_tensors(lambda tensor: paddle.index_select(tensor, rows, axis=axis), self._cache)

    # ---- one forward pass -------------------------------------------------------------------------------------------

    def _forward(self, ids_Bs: paddle.Tensor) -> paddle.Tensor:
        start, end = self._read, self._read + ids_Bs.shape[1]
        inputs = {"input_ids": ids_Bs, "attention_mask": self._mask(start, end), self._spec.cache: self._cache}
        if self._positions is not None:
            inputs["position_ids"] = self._positions[..., start:end]
        logits, self._cache = _logits_and_cache(self._model(**inputs, use_cache=True))
        self._read = end
        return logits[..., : self._vocabulary]

    def _mask(self, start: int, end: int) -> paddle.Tensor:
        tokens_BT = self._tokens_BT[:, :end]
        if not self._spec.full_mask:
            return tokens_BT
        tokens_B11T = tokens_BT.unsqueeze([1, 2])
        if start:
            return tokens_B11T
        return paddle.to_tensor(self._padded.prompt_mask()).unsqueeze(1).astype("int64") * tokens_B11T


def _logits_and_cache(outputs: Any) -> tuple[paddle.Tensor, Any]:
    logits, cache = outputs[0], outputs[1]
    # ChatGLM-6B returns a tuple of all outputs of its base network after the hidden states.
    return logits, cache[0] if isinstance(cache, tuple) and isinstance(cache[0], list) else cache


def _map_tensors(fn: Callable[[paddle.Tensor], paddle.Tensor], nested: Any) -> Any:
    """Return the same nested lists, tuples and named tuples with each tensor replaced."""
    if isinstance(nested, paddle.Tensor):
        return fn(nested)
    parts = [_map_tensors(fn, part) for part in nested]
    return type(nested)(*parts) if hasattr(nested, "_fields") else type(nested)(parts)
