"""Beam search: keep several of the most likely texts at each step (Graves 2012, section 3.3).

The search follows transformers. The score of a finished text is its log-probability divided by its length to the
power `length_penalty`; the length includes the end token. A step takes the most likely continuations of all beams
and keeps num_beams unfinished ones. A search ends when its best unfinished text, if it ended now, would not have a
higher score than the worst of num_beams finished ones. Any number of tokens may end a text. PaddleNLP 3.0.0b4 supports
one end token only, and reorders the cache of ChatGLM by the wrong axis.

Shapes: P prompts in the search, K beams per prompt, C candidate continuations, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import paddle
import paddle.nn.functional as F

from paddle_llm.generation.decoding.step import broadcast_from_first, open_batch, repetition_penalty
from paddle_llm.generation.options import DecodeOptions, DecodeStrategy
from paddle_llm.models.prompt import Prompt
from paddle_llm.parallel.mesh import Axis

if TYPE_CHECKING:
    from paddle_llm.generation.static.program import StaticProgram
    from paddle_llm.models.protocols import LanguageModel

_IMPOSSIBLE = -1e30  # log-probability of a beam that does not exist


@dataclass
class _Search:
    """The search for the continuation of one prompt.

    Attributes:
        number: Index of the prompt.
        max_new_tokens: Maximum number of new tokens.
        strategy: Number of beams and length penalty.
        unfinished: (log-probability, tokens) of each beam, best first.
        finished: (score, tokens) of the best finished texts, best first.
    """

    number: int
    max_new_tokens: int
    strategy: DecodeStrategy
    unfinished: list[tuple[float, list[int]]] = field(default_factory=lambda: [(0.0, [])])
    finished: list[tuple[float, list[int]]] = field(default_factory=list)

    def step(
        self, scores_C: np.ndarray, beams_C: np.ndarray, tokens_C: np.ndarray, stop_ids: Collection[int]
    ) -> list[tuple[int, int]]:
        """Continue the search by one token.

        Args:
            scores_C: Log-probabilities, in descending order.
            beams_C: Beam that each one continues.
            tokens_C: Token that each one appends.
            stop_ids: Token ids that end a text.

        Returns:
            (beam, token) of each unfinished continuation, best first; [] when the search is over.
        """
        width, before = self.strategy.num_beams, self.unfinished
        kept: list[tuple[int, int]] = []
        self.unfinished = []
        for rank, (score, beam, token) in enumerate(
            zip(scores_C.tolist(), beams_C.tolist(), tokens_C.tolist(), strict=True)
        ):
            if score <= _IMPOSSIBLE or len(kept) == width:
                break
            tokens = [*before[beam][1], token]
            if token in stop_ids:
                if rank < width:
                    self._finish(score, tokens[:-1], len(tokens))
            elif len(tokens) == self.max_new_tokens:
                if rank < width:
                    self._finish(score, tokens, len(tokens))
            else:
                kept.append((beam, token))
                self.unfinished.append((score, tokens))
        return [] if self._is_over() else kept

    def _finish(self, score: float, tokens: list[int], length: int) -> None:
        self.finished.append((self._normalized(score, length), tokens))
        self.finished = sorted(self.finished, key=lambda text: -text[0])[: self.strategy.num_beams]

    def _normalized(self, score: float, length: int) -> float:
        return score / length**self.strategy.length_penalty

    def _is_over(self) -> bool:
        if not self.unfinished or len(self.finished) < self.strategy.num_beams:
            return not self.unfinished
        best, tokens = self.unfinished[0]
        return self._normalized(best, len(tokens)) <= self.finished[-1][0]

    def best(self) -> list[int]:
        """Return the tokens of the text with the highest score."""
        return max(self.finished, key=lambda text: text[0])[1] if self.finished else []


def search_beams(
    model: LanguageModel | StaticProgram,
    prompts: Sequence[Prompt],
    max_new_tokens: Sequence[int],
    options: DecodeOptions,
) -> list[list[int]]:
    """Return the best continuation of each prompt; see `decode`."""
    searches = [_Search(number, count, options.strategy) for number, count in enumerate(max_new_tokens)]
    active = [search for search in searches if search.max_new_tokens > 0]
    if not active:
        return [[] for _ in prompts]
    num_beams = options.strategy.num_beams
    first = [prompts[search.number] for search in active]
    batch = open_batch(model, first, max(search.max_new_tokens for search in active), options)
    penalty = repetition_penalty(model, first, options)
    logits, width = batch.read_prompts(), 1
    while True:
        log_probabilities = F.log_softmax(penalty(logits) if penalty else logits, axis=-1)
        candidates = _best_continuations(log_probabilities, active, width, len(options.stop_ids), options.tensor)
        rows: list[int] = []
        tokens: list[int] = []
        unfinished = []
        for index, (search, scores_C, beams_C, tokens_C) in enumerate(zip(active, *candidates, strict=True)):
            kept = search.step(scores_C, beams_C, tokens_C, options.stop_ids)
            if not kept:
                continue
            unfinished.append(search)
            # The batch needs num_beams rows per prompt: missing ones repeat the first and are never read.
            filled = kept + kept[:1] * (num_beams - len(kept))
            rows += [index * width + beam for beam, _ in filled]
            tokens += [token for _, token in filled]
        if not unfinished:
            return [search.best() for search in searches]
        active, width = unfinished, num_beams
        kept_rows, new_tokens = (paddle.to_tensor(np.array(numbers, np.int64)) for numbers in (rows, tokens))
        batch.keep_rows(kept_rows)
        if penalty:
            penalty.keep_rows(kept_rows)
            penalty.add(new_tokens)
        logits = batch.read(new_tokens)


def _best_continuations(
    log_probabilities: paddle.Tensor, active: Sequence[_Search], width: int, stop_count: int, tensor: Axis | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find the best continuations of each prompt.

    Args:
        log_probabilities: Log-probabilities [P K, V] of the next token.
        active: Searches of the prompts.
        width: K.
        stop_count: Number of tokens that end a text.
        tensor: Mesh axis of the tensor-parallel ranks; None: one process.

    Returns:
        Log-probabilities, beams and tokens [P, C], best first.
    """
    vocab_size = log_probabilities.shape[-1]
    before_PK = np.full((len(active), width), _IMPOSSIBLE, np.float32)
    for index, search in enumerate(active):
        before_PK[index, : len(search.unfinished)] = [score for score, _ in search.unfinished]
    scores = log_probabilities + paddle.to_tensor(before_PK.reshape(-1, 1))
    # The best candidates of a beam may all be end tokens, so there must be num_beams candidates besides them.
    count = min(active[0].strategy.num_beams * (1 + stop_count), width * vocab_size)
    best_PC, indices_PC = paddle.topk(scores.reshape([len(active), -1]), count)
    best, indices = broadcast_from_first(best_PC, tensor).numpy(), broadcast_from_first(indices_PC, tensor).numpy()
    return best, indices // vocab_size, indices % vocab_size
