"""Beam search: the texts that a network finds likeliest, several kept at a time (Graves 2012, section 3.3).

As transformers does it: a text that ends is worth its log-probability divided by its length to the power
`length_penalty`, the end counted as a token; of 2 x num_beams continuations those that go on are kept; a search is over
when the best one that goes on could not beat the worst of num_beams finished ones by ending now. Any number of tokens
may end a text. What PaddleNLP 3.0.0b4 has ends at one token only, and reorders the cache of ChatGLM by its wrong axis.

Shapes: P prompts that are searched, K beams of each, C continuations that are looked at, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import paddle
import paddle.nn.functional as F

from paddle_llm.generation.decode import agreed, open_network, seen_tokens
from paddle_llm.generation.sampling import Choice
from paddle_llm.models.prompt import Prompt
from paddle_llm.parallel.mesh import Axis

_NEVER = -1e30


@dataclass
class _Search:
    """The search behind one prompt. open: (log-probability, tokens) of beams that go on; ended: (worth, tokens)."""

    number: int
    room: int
    choice: Choice
    open: list[tuple[float, list[int]]] = field(default_factory=lambda: [(0.0, [])])
    ended: list[tuple[float, list[int]]] = field(default_factory=list)

    def step(self, scores_C: np.ndarray, beams_C: np.ndarray, tokens_C: np.ndarray, stop_ids: Collection[int]) -> list:
        """Take the best continuations, best first; returns (beam, token) of those that go on."""
        width, before = self.choice.num_beams, self.open
        going: list[tuple[int, int]] = []
        self.open = []
        for rank, (score, beam, token) in enumerate(
            zip(scores_C.tolist(), beams_C.tolist(), tokens_C.tolist(), strict=True)
        ):
            if score <= _NEVER or len(going) == width:
                break
            tokens = [*before[beam][1], token]
            if token in stop_ids:
                if rank < width:
                    self._end(score, tokens[:-1], len(tokens))
            elif len(tokens) == self.room:
                if rank < width:
                    self._end(score, tokens, len(tokens))
            else:
                going.append((beam, token))
                self.open.append((score, tokens))
        return [] if self._over() else going

    def _end(self, score: float, tokens: list[int], length: int) -> None:
        self.ended.append((self._worth(score, length), tokens))
        self.ended = sorted(self.ended, key=lambda one: -one[0])[: self.choice.num_beams]

    def _worth(self, score: float, length: int) -> float:
        return score / length**self.choice.length_penalty

    def _over(self) -> bool:
        if not self.open or len(self.ended) < self.choice.num_beams:
            return not self.open
        best, tokens = self.open[0]
        return self._worth(best, len(tokens)) <= self.ended[-1][0]

    def best(self) -> list[int]:
        """The tokens of the text that is worth most."""
        return max(self.ended, key=lambda one: one[0])[1] if self.ended else []


def search_beams(
    model: Any,
    family: str,
    prompts: Sequence[Prompt],
    rooms: Sequence[int],
    stop_ids: Collection[int],
    choice: Choice,
    tensor: Axis | None = None,
) -> list[list[int]]:
    """The best text behind each prompt; see `decode`."""
    searches = [_Search(number, room, choice) for number, room in enumerate(rooms)]
    active = [search for search in searches if search.room > 0]
    if not active:
        return [[] for _ in prompts]
    first = [prompts[search.number] for search in active]
    network = open_network(model, family, first, max(search.room for search in active))
    seen = seen_tokens(model, first, choice)
    logits, width = network.read_prompts(), 1
    while True:
        log_probabilities = F.log_softmax(seen(logits) if seen else logits, axis=-1)
        found = _best_continuations(log_probabilities, active, width, len(stop_ids), tensor)
        rows: list[int] = []
        tokens: list[int] = []
        lasting = []
        for place, (search, *continuations) in enumerate(zip(active, *found, strict=True)):
            going = search.step(*continuations, stop_ids)
            if not going:
                continue
            lasting.append(search)
            # Rows without a beam repeat the first one, and count for nothing.
            filled = going + going[:1] * (choice.num_beams - len(going))
            rows += [place * width + beam for beam, _ in filled]
            tokens += [token for _, token in filled]
        if not lasting:
            return [search.best() for search in searches]
        active, width = lasting, choice.num_beams
        kept, read = (paddle.to_tensor(np.array(numbers, np.int64)) for numbers in (rows, tokens))
        network.keep_rows(kept)
        if seen:
            seen.keep_rows(kept)
            seen.add(read)
        logits = network.read(read)


def _best_continuations(
    log_probabilities: Any, active: Sequence[_Search], width: int, ends: int, tensor: Axis | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Log-probabilities, beams and tokens [P, C] of the best continuations of each prompt, best first."""
    vocabulary = log_probabilities.shape[-1]
    before_PK = np.full((len(active), width), _NEVER, np.float32)
    for place, search in enumerate(active):
        before_PK[place, : len(search.open)] = [score for score, _ in search.open]
    scores = log_probabilities + paddle.to_tensor(before_PK.reshape(-1, 1))
    # Of each beam all of its ends may be among the best: so many more are looked at.
    count = min(active[0].choice.num_beams * (1 + ends), width * vocabulary)
    best_PC, places_PC = paddle.topk(scores.reshape([len(active), -1]), count)
    best, places = agreed(best_PC, tensor).numpy(), agreed(places_PC, tensor).numpy()
    return best, places // vocabulary, places % vocabulary
