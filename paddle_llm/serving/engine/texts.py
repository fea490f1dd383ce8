"""What the engine receives and reports: texts to generate, and the events of each text. Does not import Paddle."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from paddle_llm.generation.options import DecodeStrategy
from paddle_llm.models.prompt import Prompt

FinishReason = Literal["stop", "length", "cancelled", "error"]


@dataclass(frozen=True)
class TextRequest:
    """One text to generate.

    Attributes:
        key: Name by which events refer to the text, unique among unfinished texts.
        prompt: The prompt, not empty.
        max_new_tokens: Maximum number of new tokens; 0 only with `scores_prompt`.
        strategy: Greedy decoding or sampling, not beam search.
        stream: Number that with the seed determines the random numbers; text 0 has those of `paddle-llm generate`.
        stop_ids: Token ids that end the text. They are not part of it.
        top_logprobs: Number of most likely tokens whose log-probabilities are reported with each token; None: no
            log-probabilities.
        scores_prompt: Whether the tokens of the prompt are reported with log-probabilities as well. Such a prompt is
            read one token per step.
    """

    key: str
    prompt: Prompt
    max_new_tokens: int
    strategy: DecodeStrategy = DecodeStrategy()
    stream: int = 0
    stop_ids: Collection[int] = ()
    top_logprobs: int | None = None
    scores_prompt: bool = False

    @property
    def length(self) -> int:
        """Maximum number of tokens of prompt and text together."""
        return len(self.prompt) + self.max_new_tokens


@dataclass(frozen=True)
class Started:
    """A text has left the queue: its prompt is being read.

    Attributes:
        key: The text.
    """

    key: str


@dataclass(frozen=True)
class TokenAdded:
    """A token of a text.

    Attributes:
        key: The text.
        token: Token id.
        logprob: Log-probability of the token under the model, before temperature and penalties; None: not requested,
            or the first token of a prompt.
        top: (id, log-probability) of the most likely tokens, best first.
        of_prompt: Whether the token belongs to the prompt.
    """

    key: str
    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    of_prompt: bool = False


@dataclass(frozen=True)
class Finished:
    """A text is complete.

    Attributes:
        key: The text.
        reason: "stop": a stop token; "length": the maximum number of tokens; "cancelled"; "error": see `message`.
        message: Description of the error.
    """

    key: str
    reason: FinishReason
    message: str = ""


Event = Started | TokenAdded | Finished


@dataclass(frozen=True)
class EngineState:
    """The load of the engine after a step.

    Attributes:
        running: Number of texts whose prompt or tokens are being computed.
        waiting: Number of texts in the queue.
        cache_use: Share of the cache's budget that the tokens of running texts take, 0 to 1.
    """

    running: int
    waiting: int
    cache_use: float
