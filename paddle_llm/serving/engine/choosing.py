"""Chooses the next token of each text by the rules of `generation/decoding`, with settings that differ between texts.

Shapes: B rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import paddle

from paddle_llm.generation.decoding.sampling import RepetitionPenalty, draw
from paddle_llm.serving.engine.texts import TextRequest


class TokenRule:
    """How the tokens of one text are chosen.

    Args:
        request: The text.
        vocab_size: V.
    """

    def __init__(self, request: TextRequest, vocab_size: int) -> None:
        self.strategy = strategy = request.strategy
        self.random = np.random.default_rng([strategy.seed, request.stream]) if strategy.samples else None
        self._penalty: RepetitionPenalty | None = None
        if strategy.repetition_penalty != 1:
            self._penalty = RepetitionPenalty([request.prompt.ids], vocab_size, strategy.repetition_penalty)

    @property
    def group(self) -> tuple[float | None, int | None, float | None]:
        """Settings that texts drawn together must share."""
        return self.strategy.temperature, self.strategy.top_k, self.strategy.top_p

    def penalised(self, logits_V: np.ndarray) -> np.ndarray:
        """Return the logits after the repetition penalty."""
        if self._penalty is None:
            return logits_V
        penalised_V: np.ndarray = self._penalty(paddle.to_tensor(logits_V[None])).numpy()[0]
        return penalised_V

    def add(self, token: int) -> None:
        """Record a token of the text for the repetition penalty."""
        if self._penalty is not None:
            self._penalty.add(paddle.to_tensor(np.array([token], np.int64)))


@paddle.no_grad()
def choose_tokens(logits_BV: np.ndarray, rules: Sequence[TokenRule]) -> list[int]:
    """Choose the next token of each row.

    Args:
        logits_BV: Logits.
        rules: Rule of each row.
    """
    tokens = logits_BV.argmax(axis=-1)
    drawn: dict[tuple[float | None, int | None, float | None], list[int]] = {}
    for row, rule in enumerate(rules):
        if rule.random is not None:
            drawn.setdefault(rule.group, []).append(row)
        elif rule.strategy.repetition_penalty != 1:
            tokens[row] = rule.penalised(logits_BV[row]).argmax()
    for rows in drawn.values():
        logits = paddle.to_tensor(np.stack([rules[row].penalised(logits_BV[row]) for row in rows]))
        numbers = [random.random() for row in rows if (random := rules[row].random) is not None]
        tokens[rows] = draw(logits, rules[rows[0]].strategy, numbers).numpy()
    chosen: list[int] = tokens.tolist()
    for rule, token in zip(rules, chosen, strict=True):
        rule.add(token)
    return chosen


def log_probabilities(logits_V: np.ndarray, token: int, top: int) -> tuple[float, tuple[tuple[int, float], ...]]:
    """Return the log-probability of a token, and ids and log-probabilities of the most likely tokens, best first.

    Args:
        logits_V: Logits.
        token: The token.
        top: Number of most likely tokens.
    """
    shifted_V = logits_V.astype(np.float64) - logits_V.max()
    values_V = shifted_V - np.log(np.exp(shifted_V).sum())
    if top == 0:
        return float(values_V[token]), ()
    top = min(top, len(values_V))
    best = np.argpartition(-values_V, top - 1)[:top]
    best = best[np.lexsort((best, -values_V[best]))]
    return float(values_V[token]), tuple((int(number), float(values_V[number])) for number in best)
