"""How the next token is chosen from logits: the likeliest one, or one drawn at random.

Random numbers come from numpy, one stream for each text: what is drawn depends on the seed and on the text's number alone,
not on the batch or the layout, and the random states of a training stay where they were. (PaddleNLP 3.0.0b4 draws from
Paddle's global state, for a batch at once.)

Shapes: B rows, V vocabulary, C candidates of a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Choice:
    """What was asked for.

    Attributes:
        temperature: logits are divided by it; top_k: so many likeliest tokens; top_p: the likeliest tokens that together have
            this probability (Holtzman et al. 2020). Each one asks for sampling; None (0 for top_k): no limit.
        repetition_penalty: scores of tokens that prompt or answer have are divided by it where they are positive, else
            multiplied (Keskar et al. 2019, section 4.1). 1: none.
        num_beams: above 1 a beam search, which excludes sampling.
        length_penalty: of a beam search: a text's log-probability is divided by its length to this power, as transformers
            does; above 0 longer ones gain.
    """

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float = 1.0
    num_beams: int = 1
    length_penalty: float = 1.0
    seed: int = 0

    @property
    def samples(self) -> bool:
        """Whether random numbers are needed."""
        asked = self.temperature is not None or self.top_p is not None or bool(self.top_k)
        return asked and self.top_k != 1 and self.num_beams == 1


class Chooser:
    """Chooses for a batch, step by step.

    Args:
        keys: the number of each row's text.
    """

    def __init__(self, choice: Choice, keys: Sequence[int]):
        self._choice = choice
        self._streams = [np.random.default_rng([choice.seed, key]) for key in keys] if choice.samples else []

    def __call__(self, logits_BV: Any) -> Any:
        """One token for each row, int64 [B]."""
        if not self._choice.samples:
            return logits_BV.argmax(axis=-1)
        return _draw(logits_BV, self._choice, [stream.random() for stream in self._streams])

    def keep_rows(self, rows: Sequence[int]) -> None:
        self._streams = [self._streams[row] for row in rows] if self._streams else []


def _draw(logits_BV: Any, choice: Choice, uniform_B: Sequence[float]) -> Any:
    """The token at which the running sum of the probabilities passes a number that is uniform in [0, 1)."""
    import paddle
    import paddle.nn.functional as F

    scaled, tokens = logits_BV / (choice.temperature or 1.0), None
    if choice.top_k:
        scaled, tokens = paddle.topk(scaled, min(choice.top_k, scaled.shape[-1]))
    elif choice.top_p is not None and choice.top_p < 1:
        tokens = paddle.argsort(scaled, axis=-1, descending=True)
        scaled = paddle.take_along_axis(scaled, tokens, axis=-1)
    probabilities_BC = F.softmax(scaled, axis=-1)
    if choice.top_p is not None and choice.top_p < 1:
        before_BC = probabilities_BC.cumsum(axis=-1) - probabilities_BC
        probabilities_BC = probabilities_BC * (before_BC < choice.top_p).astype(probabilities_BC.dtype)
    sums_BC = probabilities_BC.cumsum(axis=-1)
    wanted_B1 = paddle.to_tensor(np.array(uniform_B, np.float32)[:, None]) * sums_BC[:, -1:]
    place_B1 = (sums_BC <= wanted_B1).astype("int64").sum(axis=-1, keepdim=True)
    # Rounding may leave the last candidates behind: the last one that has a probability at all.
    last_B1 = (sums_BC < sums_BC[:, -1:]).astype("int64").sum(axis=-1, keepdim=True)
    place_B1 = paddle.minimum(place_B1, last_B1)
    return (place_B1 if tokens is None else paddle.take_along_axis(tokens, place_B1, axis=-1)).squeeze(-1)


class SeenTokens:
    """Makes what a text has already less likely.

    Args:
        texts: the tokens of each row so far; ids outside of the vocabulary (learnt prompts) are left out.
    """

    def __init__(self, texts: Sequence[Sequence[int]], vocabulary: int, penalty: float):
        import paddle

        seen_BV = np.zeros((len(texts), vocabulary), bool)
        for row, text in enumerate(texts):
            ids = np.asarray(text)
            seen_BV[row, ids[ids < vocabulary]] = True
        self._seen_BV, self._penalty = paddle.to_tensor(seen_BV), penalty

    def __call__(self, logits_BV: Any) -> Any:
        import paddle

        penalised = paddle.where(logits_BV > 0, logits_BV / self._penalty, logits_BV * self._penalty)
        return paddle.where(self._seen_BV, penalised, logits_BV)

    def add(self, tokens_B: Any) -> None:
        import paddle
        import paddle.nn.functional as F

        self._seen_BV = paddle.logical_or(self._seen_BV, F.one_hot(tokens_B, self._seen_BV.shape[1]).astype("bool"))

    def keep_rows(self, rows: Any) -> None:
        import paddle

        self._seen_BV = paddle.index_select(self._seen_BV.astype("int32"), rows).astype("bool")
