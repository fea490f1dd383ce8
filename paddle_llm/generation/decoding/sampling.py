"""Chooses the next token from logits: the most likely one, or one drawn at random.

Random numbers come from numpy, with one stream per text. A draw depends only on the seed and the number of the text,
not on the batch or the layout, and the random states of training do not change. (PaddleNLP 3.0.0b4 draws from
Paddle's global state, for a whole batch at once.)

Shapes: B rows, V vocabulary, C candidates of a row.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import paddle
import paddle.nn.functional as F

from paddle_llm.generation.options import DecodeStrategy


class TokenChooser:
    """Chooses one token per row of a batch, step by step.

    Args:
        strategy: Greedy decoding or sampling.
        keys: Number of each row's text; with the seed it determines the text's random stream.
    """

    def __init__(self, strategy: DecodeStrategy, keys: Sequence[int]) -> None:
        self._strategy = strategy
        self._streams = [np.random.default_rng([strategy.seed, key]) for key in keys] if strategy.samples else []

    def __call__(self, logits_BV: paddle.Tensor) -> paddle.Tensor:
        """Return one token per row, int64 [B]."""
        if not self._strategy.samples:
            return logits_BV.argmax(axis=-1)
        return draw(logits_BV, self._strategy, [stream.random() for stream in self._streams])

    def keep_rows(self, rows: Sequence[int]) -> None:
        """Keep only these rows, in this order."""
        self._streams = [self._streams[row] for row in rows] if self._streams else []


def draw(logits_BV: paddle.Tensor, strategy: DecodeStrategy, uniform_B: Sequence[float]) -> paddle.Tensor:
    """Return the token [B] at which the cumulative probability exceeds a number drawn uniformly from [0, 1), [B]."""
    scaled, tokens = logits_BV / (strategy.temperature or 1.0), None
    if strategy.top_k:
        scaled, tokens = paddle.topk(scaled, min(strategy.top_k, scaled.shape[-1]))
    elif strategy.top_p is not None and strategy.top_p < 1:
        tokens = paddle.argsort(scaled, axis=-1, descending=True)
        scaled = paddle.take_along_axis(scaled, tokens, axis=-1)
    probabilities_BC = F.softmax(scaled, axis=-1)
    if strategy.top_p is not None and strategy.top_p < 1:
        before_BC = probabilities_BC.cumsum(axis=-1) - probabilities_BC
        probabilities_BC = probabilities_BC * (before_BC < strategy.top_p).astype(probabilities_BC.dtype)
    sums_BC = probabilities_BC.cumsum(axis=-1)
    threshold_B1 = paddle.to_tensor(np.array(uniform_B, np.float32)[:, None]) * sums_BC[:, -1:]
    index_B1 = (sums_BC <= threshold_B1).astype("int64").sum(axis=-1, keepdim=True)
    # Rounding may lead past the last candidate with a positive probability.
    last_B1 = (sums_BC < sums_BC[:, -1:]).astype("int64").sum(axis=-1, keepdim=True)
    index_B1 = paddle.minimum(index_B1, last_B1)
    return (index_B1 if tokens is None else paddle.take_along_axis(tokens, index_B1, axis=-1)).squeeze(-1)


class RepetitionPenalty:
    """Makes the tokens that a text already contains less likely.

    Args:
        texts: Tokens of each row so far. Ids outside the vocabulary (learned prompts) are ignored.
        vocab_size: V.
        penalty: See `DecodeStrategy.repetition_penalty`.
    """

    def __init__(self, texts: Sequence[Sequence[int]], vocab_size: int, penalty: float) -> None:
        seen_BV = np.zeros((len(texts), vocab_size), bool)
        for row, text in enumerate(texts):
            ids = np.asarray(text)
            seen_BV[row, ids[ids < vocab_size]] = True
        self._seen_BV, self._penalty = paddle.to_tensor(seen_BV), penalty

    def __call__(self, logits_BV: paddle.Tensor) -> paddle.Tensor:
        """Return the penalised logits [B, V]."""
        penalised = paddle.where(logits_BV > 0, logits_BV / self._penalty, logits_BV * self._penalty)
        return paddle.where(self._seen_BV, penalised, logits_BV)

    def add(self, tokens_B: paddle.Tensor) -> None:
        """Record one more token per row."""
        self._seen_BV = paddle.logical_or(self._seen_BV, F.one_hot(tokens_B, self._seen_BV.shape[1]).astype("bool"))

    def keep_rows(self, rows: paddle.Tensor) -> None:
        """Keep only these rows, in this order."""
        self._seen_BV = paddle.index_select(self._seen_BV.astype("int32"), rows).astype("bool")
