"""A network that reads prompts, then one token after the other, and remembers keys and values: one interface, all families.

PaddleNLP's networks (3.0.0b4) all have a cache, each under another name and in another shape, and each family prepares
masks and positions in its own way, anew from the whole text at each token; GLM does without its cache. What differs is
here in one table, and masks and positions are made once.

Shapes: B rows, S tokens of the longest prompt, s tokens that are read now, T tokens read so far, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import paddle

from paddle_llm.models.head import last_position_alone
from paddle_llm.models.prompt import Prompt
from paddle_llm.models.token_positions import Places
from paddle_llm.models.weights.vocabulary import real_vocab_size


@dataclass(frozen=True)
class _Way:
    """How a family takes its cache.

    Attributes:
        cache: the name of the argument.
        row_axis: of the tensors in the cache.
        positions: whether it takes `position_ids`; else it counts the tokens in the mask itself.
        full_mask: a mask [B, 1, s, T] in place of which positions hold a token, [B, T].
        blocks: positions are [B, 2, s]: the second row counts what is generated behind a prefix (GLM, Du et al. 2022).
    """

    cache: str = "past_key_values"
    row_axis: int = 0
    positions: bool = True
    full_mask: bool = False
    blocks: bool = False


_WAYS = {
    "llama": _Way(),
    "qwen2": _Way(),
    "chatglm_v2": _Way(row_axis=1),
    "bloom": _Way("cache", positions=False),
    "opt": _Way("cache", positions=False),
    "chatglm": _Way("cache", row_axis=1, full_mask=True, blocks=True),
    "glm": _Way("cache", full_mask=True, blocks=True),
}


class IncrementalNetwork:
    """One batch of prompts in a network.

    Args:
        model: in evaluation mode, its logits not split over tensor-parallel ranks.
        family: its name.
        prompts: none of them empty; shorter ones are padded on the left.
        room: the most tokens that will follow.
    """

    def __init__(self, model: Any, family: str, prompts: Sequence[Prompt], room: int):
        self._model, self._family, self._way = model, family, _WAYS[family]
        self._vocabulary = real_vocab_size(model.config)
        self._places = places = Places(prompts, room, blocks=self._way.blocks)
        self._tokens_BT = paddle.to_tensor(places.tokens_BT)
        self._positions = paddle.to_tensor(places.positions) if self._way.positions else None
        self._read, self._cache = 0, None

    def read_prompts(self) -> paddle.Tensor:
        """Logits [B, V] of the first token behind each prompt."""
        with last_position_alone(self._model, self._family):
            return self._forward(paddle.to_tensor(self._places.ids_BS))

    def read(self, tokens_B: paddle.Tensor) -> paddle.Tensor:
        """Logits [B, V] of the token behind one more token of each row."""
        return self._forward(tokens_B.unsqueeze(1))

    def keep_rows(self, rows: paddle.Tensor) -> None:
        """Go on with these rows, in this order; one may be there several times."""
        self._tokens_BT = paddle.index_select(self._tokens_BT, rows)
        if self._positions is not None:
            self._positions = paddle.index_select(self._positions, rows)
        axis = self._way.row_axis
        self._cache = _map_tensors(lambda tensor: paddle.index_select(tensor, rows, axis=axis), self._cache)

    # ---- one forward pass -------------------------------------------------------------------------------------------

    def _forward(self, ids_Bs: paddle.Tensor) -> paddle.Tensor:
        start, end = self._read, self._read + ids_Bs.shape[1]
        inputs = {"input_ids": ids_Bs, "attention_mask": self._mask(start, end), self._way.cache: self._cache}
        if self._way.positions:
            inputs["position_ids"] = self._positions[..., start:end]
        logits, self._cache = _logits_and_cache(self._model(**inputs, use_cache=True))
        self._read = end
        return logits[:, -1, : self._vocabulary].astype("float32")

    def _mask(self, start: int, end: int) -> paddle.Tensor:
        tokens_BT = self._tokens_BT[:, :end]
        if not self._way.full_mask:
            return tokens_BT
        tokens_B11T = tokens_BT.unsqueeze([1, 2])
        if start:
            return tokens_B11T
        return paddle.to_tensor(self._places.prompt_mask()).unsqueeze(1).astype("int64") * tokens_B11T


def _logits_and_cache(outputs: Any) -> tuple[paddle.Tensor, Any]:
    logits, cache = outputs[0], outputs[1]
    # ChatGLM-6B gives the tuple of all that its base returns behind the hidden states.
    return logits, cache[0] if isinstance(cache, tuple) and isinstance(cache[0], list) else cache


def _map_tensors(fn: Callable[[paddle.Tensor], paddle.Tensor], nested: Any) -> Any:
    """The same nest of lists, tuples and named tuples with each tensor replaced."""
    if isinstance(nested, paddle.Tensor):
        return fn(nested)
    parts = [_map_tensors(fn, part) for part in nested]
    return type(nested)(*parts) if hasattr(nested, "_fields") else type(nested)(parts)
