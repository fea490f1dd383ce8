"""`POST /v1/completions`: continue plain texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from paddle_llm.models.prompt import Prompt
from paddle_llm.serving.engine.texts import TextRequest, TokenAdded
from paddle_llm.serving.errors import RequestError
from paddle_llm.serving.http.answers import Choice, Piece, header
from paddle_llm.serving.http.schemas import DEFAULT_COMPLETION_TOKENS, CompletionRequest
from paddle_llm.serving.model import ServedModel
from paddle_llm.serving.text_stream import TextStream


def encode_prompts(model: ServedModel, body: CompletionRequest) -> list[Prompt]:
    """Encode the prompts of a request, which may take a while.

    Raises:
        RequestError: If one cannot be encoded, or leaves no positions for new tokens.
    """
    prompts = [model.encode_text(one) if isinstance(one, str) else model.encode_ids(one) for one in body.prompts]
    new = DEFAULT_COMPLETION_TOKENS if body.max_tokens is None else body.max_tokens
    for prompt in prompts:
        if len(prompt) + new > model.max_length:
            raise RequestError(
                f"The prompt has {len(prompt)} tokens, which with max_tokens = {new} exceeds the {model.max_length} tokens "
                f"with which the model is served. Use max_tokens = {max(model.max_length - len(prompt), 0)} or less, or "
                "shorten the prompt.",
                param="max_tokens",
                code="context_length_exceeded",
            )
        if prompt.prefix and body.echo and body.logprobs is not None:
            raise RequestError(
                "The tokens of this model's prompts see each other, so that they have no log-probabilities. Remove echo or "
                "logprobs.",
                param="echo",
            )
    return prompts


def completion_choices(
    model: ServedModel, body: CompletionRequest, prompts: Sequence[Prompt], identifier: str
) -> list[Choice]:
    """Return the texts of a request: n for each prompt."""
    count = body.n or 1
    strategy = body.strategy()
    stop_ids = model.stop_ids | frozenset(body.stop_token_ids or ())
    new = DEFAULT_COMPLETION_TOKENS if body.max_tokens is None else body.max_tokens
    choices = []
    for number, (given, prompt) in enumerate(zip(body.prompts, prompts, strict=True)):
        prompt_text = given if isinstance(given, str) else model.codec.decode(prompt.ids)
        scores_prompt = bool(body.echo) and body.logprobs is not None
        for index in range(number * count, (number + 1) * count):
            request = TextRequest(
                key=f"{identifier}-{index}",
                prompt=prompt,
                max_new_tokens=new,
                strategy=strategy,
                stream=index,
                stop_ids=stop_ids,
                top_logprobs=body.logprobs,
                scores_prompt=scores_prompt,
            )
            if new == 0 and not scores_prompt:  # nothing to compute, but the engine checks and answers every request
                raise RequestError("max_tokens = 0 needs logprobs. Set logprobs, or use 1 or more.", param="max_tokens")
            stream = TextStream(model.codec, _text_ids(model, prompt), body.stops)
            echo = prompt_text if body.echo else ""
            choices.append(Choice(request, stream, echo, 0 if body.echo else len(prompt_text)))
    return choices


def _text_ids(model: ServedModel, prompt: Prompt) -> list[int]:
    """Return the ids of a prompt without those that the tokenizer adds, which have no text."""
    ids, added = list(prompt.ids), model.codec.prefix_ids
    if added and ids[: len(added)] == added:
        ids = ids[len(added) :]
    ending = list(model.codec.prefix_lm or ())
    return ids[: -len(ending)] if ending and prompt.prefix else ids


class CompletionFormat:
    """The JSON of completions.

    Args:
        model: The model.
        identifier: Identifier of the response.
    """

    def __init__(self, model: ServedModel, identifier: str) -> None:
        self._model, self._header = model, header(identifier, "text_completion", model.names[0])

    def whole(self, choices: Sequence[Choice]) -> dict[str, Any]:
        """Return the object of a complete response, without `usage`."""
        return {**self._header, "choices": [self._whole(index, choice) for index, choice in enumerate(choices)]}

    def first_events(self, choices: Sequence[Choice]) -> list[dict[str, Any]]:
        """Return the events with the prompts that are echoed."""
        return [self.event(choices, Piece(index, choice.echo)) for index, choice in enumerate(choices) if choice.echo]

    def event(self, choices: Sequence[Choice], piece: Piece | None) -> dict[str, Any]:
        """Return the event for new text; None: an event without choices."""
        if piece is None:
            return {**self._header, "choices": []}
        choice = choices[piece.index]
        logprobs = self._logprobs(choice, piece.tokens) if choice.request.top_logprobs is not None else None
        new = {"index": piece.index, "text": piece.text, "logprobs": logprobs, "finish_reason": piece.finish_reason}
        return {**self._header, "choices": [new]}

    def _whole(self, index: int, choice: Choice) -> dict[str, Any]:
        logprobs = self._logprobs(choice, choice.tokens) if choice.request.top_logprobs is not None else None
        return {"index": index, "text": choice.text, "logprobs": logprobs, "finish_reason": choice.finish_reason}

    def _logprobs(self, choice: Choice, tokens: Sequence[TokenAdded]) -> dict[str, Any]:
        """Return the log-probabilities of tokens, and move the offset of the choice behind them."""
        names = [self._model.token_text(token.token) for token in tokens]
        offsets = []
        for name in names:
            offsets.append(choice.offset)
            choice.offset += len(name)
        return {
            "tokens": names,
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [self._top(token, name) for token, name in zip(tokens, names, strict=True)],
            "text_offset": offsets,
        }

    def _top(self, token: TokenAdded, name: str) -> dict[str, float] | None:
        """Return the most likely tokens and the token itself. Of tokens with the same text, the most likely is kept."""
        if token.logprob is None:
            return None
        found = {name: token.logprob}
        for number, logprob in token.top:
            text = self._model.token_text(number)
            found[text] = max(logprob, found.get(text, logprob))
        return found
