"""`Answers`: the texts of one request, as one JSON object or as a stream of server-sent events."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from paddle_llm.serving.client import EngineClient, Texts
from paddle_llm.serving.engine.texts import Finished, TextRequest, TokenAdded
from paddle_llm.serving.errors import RequestError
from paddle_llm.serving.text_stream import TextStream


@dataclass
class Choice:
    """One text of a response.

    Attributes:
        request: The text as the engine gets it.
        stream: Converter of its tokens to text.
        echo: Text of the prompt if it is part of the response, else "".
        offset: Number of characters before the first token whose log-probability is returned.
        text: Text so far.
        tokens: Tokens so far, if log-probabilities are returned; with `echo`, also those of the prompt.
        count: Number of new tokens.
        finish_reason: "stop" or "length"; None: not finished.
    """

    request: TextRequest
    stream: TextStream
    echo: str = ""
    offset: int = 0
    text: str = ""
    tokens: list[TokenAdded] = field(default_factory=list)
    count: int = 0
    finish_reason: str | None = None


@dataclass(frozen=True)
class Piece:
    """New text of a choice.

    Attributes:
        index: Index of the choice.
        text: The text.
        tokens: Its tokens, if log-probabilities are returned.
        finish_reason: "stop" or "length" if the choice is complete.
    """

    index: int
    text: str
    tokens: Sequence[TokenAdded] = ()
    finish_reason: str | None = None


class Format(Protocol):
    """The JSON of one endpoint."""

    def whole(self, choices: Sequence[Choice]) -> dict[str, Any]:
        """Return the object of a complete response, without `usage`."""

    def first_events(self, choices: Sequence[Choice]) -> list[dict[str, Any]]:
        """Return the events before any text."""

    def event(self, choices: Sequence[Choice], piece: Piece | None) -> dict[str, Any]:
        """Return the event for new text; None: an event without choices."""


class Answers:
    """The texts of one request. Call `close` in any case.

    Args:
        client: Client of the engine.
        answer_format: JSON of the endpoint.
        choices: The texts.
        includes_usage: Whether a stream ends with the number of tokens.
        prompt_tokens: Number of tokens of all prompts, each counted once.

    Raises:
        RequestError: If the queue is full.
    """

    def __init__(
        self,
        client: EngineClient,
        answer_format: Format,
        choices: list[Choice],
        *,
        includes_usage: bool,
        prompt_tokens: int,
    ) -> None:
        self._format, self._choices, self._includes_usage = answer_format, choices, includes_usage
        self._prompt_tokens = prompt_tokens
        self._texts: Texts = client.submit([choice.request for choice in choices])

    def close(self) -> None:
        """End texts that are not complete, for example because the client has left."""
        self._texts.close()

    @property
    def usage(self) -> dict[str, int]:
        """Number of tokens so far."""
        new = sum(choice.count for choice in self._choices)
        return {
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": new,
            "total_tokens": self._prompt_tokens + new,
        }

    async def whole(self) -> dict[str, Any]:
        """Wait for all texts and return the response.

        Raises:
            RequestError: If a text cannot be computed in time.
        """
        async for piece in self._pieces():
            self._choices[piece.index].text += piece.text
        for choice in self._choices:
            choice.text = choice.echo + choice.text
        return {**self._format.whole(self._choices), "usage": self.usage}

    async def events(self) -> AsyncIterator[bytes]:
        """Yield the server-sent events. An error is the last event."""
        try:
            for event in self._format.first_events(self._choices):
                yield _encoded(event)
            async for piece in self._pieces():
                if piece.text or piece.tokens or piece.finish_reason:
                    yield _encoded(self._format.event(self._choices, piece))
            if self._includes_usage:
                yield _encoded({**self._format.event(self._choices, None), "usage": self.usage})
            yield b"data: [DONE]\n\n"
        except RequestError as error:
            yield _encoded(error.body)
        finally:
            self.close()

    async def _pieces(self) -> AsyncIterator[Piece]:
        async for index, event in self._texts:
            choice = self._choices[index]
            if choice.finish_reason is not None:  # a stop string was found, and the engine was one step ahead
                continue
            piece = self._on_token(index, event) if isinstance(event, TokenAdded) else self._on_end(index, event)
            choice.finish_reason = piece.finish_reason
            yield piece

    def _on_token(self, index: int, event: TokenAdded) -> Piece:
        choice = self._choices[index]
        tokens = [event] if choice.request.top_logprobs is not None else []
        choice.tokens += tokens
        if event.of_prompt:
            return Piece(index, "", tokens)
        choice.count += 1
        text = choice.stream.add(event.token)
        if not choice.stream.stopped:
            return Piece(index, text, tokens)
        self._texts.complete(index)
        return Piece(index, text, tokens, "stop")

    def _on_end(self, index: int, event: Finished) -> Piece:
        stream = self._choices[index].stream
        text = stream.finish()
        return Piece(index, text, (), "stop" if stream.stopped else event.reason)


def header(identifier: str, kind: str, model: str) -> dict[str, Any]:
    """Return the fields that all objects of a response have."""
    return {"id": identifier, "object": kind, "created": int(time.time()), "model": model}


def _encoded(event: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(event)}\n\n".encode()
