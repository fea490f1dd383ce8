"""Texts of one prompt at a time by the network, as `paddle-llm generate` decodes them, to compare the engine with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from paddle_llm.generation.options import DecodeOptions, DecodeStrategy
from paddle_llm.models.prompt import Prompt
from paddle_llm.serving.engine.texts import Event, Finished, TokenAdded

TIE = 1e-4  # two logits that differ by less may be rounded to another order


@dataclass(frozen=True)
class Reference:
    """A greedy text.

    Attributes:
        tokens: Its tokens.
        gaps: Difference of the two best logits at each token.
        logits: Logits at each token.
    """

    tokens: list[int]
    gaps: list[float]
    logits: np.ndarray


def greedy(model: Any, family: str, prompt: Prompt, count: int) -> Reference:
    """Decode one prompt without stop tokens."""
    import paddle

    from paddle_llm.generation.decoding.step import open_batch

    with paddle.no_grad():
        batch = open_batch(model, [prompt], count, DecodeOptions(family))
        rows = [batch.read_prompts().numpy()[0]]
        tokens = [int(rows[0].argmax())]
        while len(tokens) < count:
            rows.append(batch.read(paddle.to_tensor(np.array(tokens[-1:], np.int64))).numpy()[0])
            tokens.append(int(rows[-1].argmax()))
    best = np.sort(np.stack(rows), axis=-1)[:, -2:]
    return Reference(tokens, (best[:, 1] - best[:, 0]).tolist(), np.stack(rows))


def decoded(model: Any, family: str, prompt: Prompt, count: int, strategy: DecodeStrategy, key: int = 0) -> list[int]:
    """Decode one prompt by `decode`."""
    from paddle_llm.generation.decoding.decode import decode

    return decode(model, [prompt], [count], DecodeOptions(family, (), strategy), keys=[key])[0]


def assert_same(found: Sequence[int], reference: Reference) -> None:
    """Compare up to the first position at which two logits are nearly equal."""
    for position, (token, expected, gap) in enumerate(zip(found, reference.tokens, reference.gaps, strict=True)):
        if token != expected:
            assert gap < TIE, f"token {position} is {token}, not {expected}, and the best logits differ by {gap}"
            return


class Collected:
    """The events of an engine, by text."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def run(self, engine: Any, steps: int | None = None) -> Collected:
        """Run steps until the engine is idle, or a number of them."""
        while not engine.is_idle and steps != 0:
            self.events += engine.step()
            steps = None if steps is None else steps - 1
        return self

    def added(self, key: str) -> list[TokenAdded]:
        return [event for event in self.events if isinstance(event, TokenAdded) and event.key == key]

    def tokens(self, key: str) -> list[int]:
        return [event.token for event in self.added(key) if not event.of_prompt]

    def end(self, key: str) -> Finished:
        (end,) = [event for event in self.events if isinstance(event, Finished) and event.key == key]
        return end
