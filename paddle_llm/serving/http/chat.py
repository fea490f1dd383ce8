"""`POST /v1/chat/completions`: answer the last question of a conversation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from paddle_llm.data.instructions.conversation import ROLES, Turn
from paddle_llm.models.prompt import Prompt
from paddle_llm.serving.engine.texts import TextRequest, TokenAdded
from paddle_llm.serving.errors import RequestError
from paddle_llm.serving.http.answers import Choice, Piece, header
from paddle_llm.serving.http.schemas import ChatRequest
from paddle_llm.serving.model import ServedModel
from paddle_llm.serving.text_stream import TextStream


def encode_messages(model: ServedModel, body: ChatRequest) -> Prompt:
    """Encode the conversation of a request, which may take a while.

    Raises:
        RequestError: If it cannot be encoded, or leaves no positions for an answer.
    """
    prompt = model.encode_chat([Turn(ROLES[message.role], message.text) for message in body.messages])
    new = _requested_tokens(body) or 1
    if len(prompt) + new > model.max_length:
        raise RequestError(
            f"The conversation has {len(prompt)} tokens, which with an answer of {new} exceeds the {model.max_length} tokens "
            "with which the model is served. Shorten the conversation, or request fewer tokens.",
            param="messages" if _requested_tokens(body) is None else "max_tokens",
            code="context_length_exceeded",
        )
    return prompt


def chat_choices(model: ServedModel, body: ChatRequest, prompt: Prompt, identifier: str) -> list[Choice]:
    """Return the n answers of a request. Without max_tokens an answer may take all remaining positions."""
    strategy = body.strategy()
    new = _requested_tokens(body) or model.max_length - len(prompt)
    return [
        Choice(
            TextRequest(
                key=f"{identifier}-{index}",
                prompt=prompt,
                max_new_tokens=new,
                strategy=strategy,
                stream=index,
                stop_ids=model.chat_stop_ids | frozenset(body.stop_token_ids or ()),
                top_logprobs=(body.top_logprobs or 0) if body.logprobs else None,
            ),
            TextStream(model.codec, (), body.stops),
        )
        for index in range(body.n or 1)
    ]


def _requested_tokens(body: ChatRequest) -> int | None:
    return body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens


class ChatFormat:
    """The JSON of chat completions.

    Args:
        model: The model.
        identifier: Identifier of the response.
    """

    def __init__(self, model: ServedModel, identifier: str) -> None:
        self._model = model
        self._whole = header(identifier, "chat.completion", model.names[0])
        self._chunk = {**self._whole, "object": "chat.completion.chunk"}

    def whole(self, choices: Sequence[Choice]) -> dict[str, Any]:
        """Return the object of a complete response, without `usage`."""
        return {
            **self._whole,
            "choices": [
                {
                    "index": index,
                    "message": {"role": "assistant", "content": choice.text, "refusal": None},
                    "logprobs": self._logprobs(choice, choice.tokens),
                    "finish_reason": choice.finish_reason,
                }
                for index, choice in enumerate(choices)
            ],
        }

    def first_events(self, choices: Sequence[Choice]) -> list[dict[str, Any]]:
        """Return the events with the author of each answer."""
        return [self._event(index, {"role": "assistant", "content": ""}, None, None) for index in range(len(choices))]

    def event(self, choices: Sequence[Choice], piece: Piece | None) -> dict[str, Any]:
        """Return the event for new text; None: an event without choices."""
        if piece is None:
            return {**self._chunk, "choices": []}
        delta = {"content": piece.text} if piece.text or piece.tokens else {}
        logprobs = self._logprobs(choices[piece.index], piece.tokens)
        return self._event(piece.index, delta, logprobs, piece.finish_reason)

    def _event(self, index: int, delta: dict[str, str], logprobs: Any, finish_reason: str | None) -> dict[str, Any]:
        new = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        return {**self._chunk, "choices": [new]}

    def _logprobs(self, choice: Choice, tokens: Sequence[TokenAdded]) -> dict[str, Any] | None:
        if choice.request.top_logprobs is None:
            return None
        return {"content": [self._token(token) for token in tokens], "refusal": None}

    def _token(self, token: TokenAdded) -> dict[str, Any]:
        top = [self._one(number, logprob) for number, logprob in token.top]
        return {**self._one(token.token, token.logprob), "top_logprobs": top}

    def _one(self, token: int, logprob: float | None) -> dict[str, Any]:
        text = self._model.token_text(token)
        encoded = None if "\ufffd" in text else list(text.encode())  # a part of a character has no text
        return {"token": text, "logprob": logprob, "bytes": encoded}
