"""`Engine`: decodes many texts together. Texts join and leave at any step (Yu et al. 2022, iteration-level scheduling).

One step reads at most `prompt_chunk` tokens of waiting prompts, then appends one token to every text whose prompt is
read. So a long prompt does not stop the texts that are being decoded.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from paddle_llm.generation.static.program import StaticProgram
from paddle_llm.serving.engine.cache import SlotCache
from paddle_llm.serving.engine.choosing import TokenRule, choose_tokens, log_probabilities
from paddle_llm.serving.engine.texts import (
    EngineState,
    Event,
    Finished,
    FinishReason,
    Started,
    TextRequest,
    TokenAdded,
)

_NOT_FINITE = "The logits of the model are not finite numbers, so that no token can be chosen."


@dataclass
class _Text:
    """A text in the cache.

    Attributes:
        request: The text.
        rule: How its tokens are chosen.
        forced: Tokens of the prompt that are read one per step, because their log-probabilities are requested.
        last: Newest token, which the next step reads.
        count: Number of new tokens.
    """

    request: TextRequest
    rule: TokenRule
    forced: deque[int] = field(default_factory=deque)
    last: int = -1
    count: int = 0


class Engine:
    """Generates texts with a static program.

    Args:
        program: The program.
        tokens: Budget of the cache, in tokens.
        max_texts: Maximum number of texts that are computed together.
        prompt_chunk: Maximum number of prompt tokens per step.
    """

    def __init__(self, program: StaticProgram, tokens: int, *, max_texts: int = 32, prompt_chunk: int = 256) -> None:
        self._program, self._prompt_chunk = program, prompt_chunk
        self._cache = SlotCache(program, tokens, max_texts)
        self._waiting: deque[TextRequest] = deque()
        self._reading: _Text | None = None  # the text whose prompt is being read; its row is the last one
        self._read = 0  # number of its tokens that are read
        self._decoding: list[_Text] = []  # in the order of the rows
        self._events: list[Event] = []

    # ---- texts ------------------------------------------------------------------------------------------------------

    def add(self, request: TextRequest) -> None:
        """Put a text into the queue.

        Raises:
            ValueError: If the cache cannot hold it, or it has no prompt or no tokens to compute.
        """
        if not len(request.prompt) or request.length > self._cache.tokens:
            raise ValueError(f"a text of {len(request.prompt)} to {request.length} tokens does not fit into the cache")
        if request.max_new_tokens < 1 and not request.scores_prompt:
            raise ValueError("a text without new tokens and without log-probabilities of its prompt")
        if request.scores_prompt and request.prompt.prefix:
            raise ValueError("the tokens of this prompt see each other, so that they have no log-probabilities")
        self._waiting.append(request)

    def cancel(self, key: str) -> None:
        """End a text. Its memory is free before the next step. A text that has finished is not an error."""
        for request in self._waiting:
            if request.key == key:
                self._waiting.remove(request)
                self._events.append(Finished(key, "cancelled"))
                return
        if self._reading is not None and self._reading.request.key == key:
            self._cache.close(len(self._decoding), len(self._decoding))
            self._reading = None
            self._events.append(Finished(key, "cancelled"))
            return
        for row, text in enumerate(self._decoding):
            if text.request.key == key:
                self._finish(row, "cancelled")
                return

    @property
    def is_idle(self) -> bool:
        """Whether a step would do nothing."""
        return not (self._waiting or self._reading or self._decoding or self._events)

    @property
    def state(self) -> EngineState:
        """The current load."""
        running = len(self._decoding) + (self._reading is not None)
        return EngineState(running, len(self._waiting), self._cache.used_tokens / self._cache.tokens)

    def step(self) -> list[Event]:
        """Read a part of the waiting prompts, append one token to every other text, and return what happened."""
        self._read_prompts()
        if self._decoding:
            logits_BV = self._cache.decode(np.array([text.last for text in self._decoding]))
            self._continue(list(range(len(self._decoding))), logits_BV)
        events, self._events = self._events, []
        return events

    # ---- prompts ----------------------------------------------------------------------------------------------------

    def _read_prompts(self) -> None:
        budget = self._prompt_chunk
        while budget > 0:
            if self._reading is None and not self._open_next():
                return
            text = self._reading
            assert text is not None
            prompt = text.request.prompt
            length = 1 if text.forced else len(prompt)
            # The tokens of a bidirectional prompt need each other, so it is read at once.
            count = length if prompt.prefix else min(budget, length - self._read)
            row = len(self._decoding)
            logits_V = self._cache.read_prompt(row, count)
            self._read += count
            budget -= count
            if self._read == length:
                self._reading = None
                self._decoding.append(text)
                self._continue([row], logits_V[None])

    def _open_next(self) -> bool:
        """Take the first text of the queue if the cache can hold it, and return whether it did."""
        if not self._waiting or not self._cache.fits(self._waiting[0].length):
            return False
        request = self._waiting.popleft()
        self._cache.open(request.prompt, request.max_new_tokens)
        text = _Text(request, TokenRule(request, self._program.config.vocab_size))
        self._events.append(Started(request.key))
        if request.scores_prompt:
            text.forced.extend(request.prompt.ids[1:])
            self._events.append(TokenAdded(request.key, request.prompt.ids[0], of_prompt=True))
        self._reading, self._read = text, 0
        return True

    # ---- tokens -----------------------------------------------------------------------------------------------------

    def _continue(self, rows: Sequence[int], logits_BV: np.ndarray) -> None:
        """Append a token to each of these texts, and close those that are complete."""
        finished: list[tuple[int, FinishReason, str]] = []
        is_finite_B = np.isfinite(logits_BV).all(axis=-1)
        chosen: list[tuple[int, int]] = []  # index into `rows`, row
        for index, row in enumerate(rows):
            text = self._decoding[row]
            if not is_finite_B[index]:
                finished.append((row, "error", _NOT_FINITE))
            elif text.forced:
                self._append(text, text.forced.popleft(), logits_BV[index], of_prompt=True)
                if not text.forced and text.request.max_new_tokens == 0:
                    finished.append((row, "length", ""))
            else:
                chosen.append((index, row))
        rules = [self._decoding[row].rule for _, row in chosen]
        tokens = choose_tokens(logits_BV[[index for index, _ in chosen]], rules) if chosen else []
        for (index, row), token in zip(chosen, tokens, strict=True):
            text = self._decoding[row]
            if token in text.request.stop_ids:
                finished.append((row, "stop", ""))
                continue
            self._append(text, token, logits_BV[index])
            text.count += 1
            if text.count == text.request.max_new_tokens:
                finished.append((row, "length", ""))
        for row, reason, message in sorted(finished, reverse=True):  # closing a row moves those after it
            self._finish(row, reason, message)

    def _append(self, text: _Text, token: int, logits_V: np.ndarray, *, of_prompt: bool = False) -> None:
        text.last = token
        request = text.request
        if request.top_logprobs is None:
            if not of_prompt:
                self._events.append(TokenAdded(request.key, token))
            return
        logprob, top = log_probabilities(logits_V, token, request.top_logprobs)
        self._events.append(TokenAdded(request.key, token, logprob, top, of_prompt))

    def _finish(self, row: int, reason: FinishReason, message: str = "") -> None:
        """Close the row of a text that is decoded."""
        self._cache.close(row, len(self._decoding))
        self._events.append(Finished(self._decoding[row].request.key, reason, message))
        last = self._decoding.pop()
        if row < len(self._decoding):
            self._decoding[row] = last
