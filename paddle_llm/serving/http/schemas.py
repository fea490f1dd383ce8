"""The bodies of requests. A field that is unknown or not supported is an error that names it."""

from __future__ import annotations

import secrets
from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from paddle_llm.generation.options import DecodeStrategy

MAX_CHOICES = 128
_MAX_STOPS = 16
_MAX_TOP_LOGPROBS = 20
DEFAULT_COMPLETION_TOKENS = 16  # of OpenAI's API

# Fields of OpenAI's API, FastDeploy and vLLM that are not supported, with the values at which they have no effect.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "audio": (), "bad_words": ([],), "bad_words_token_ids": ([],), "best_of": (1,), "chat_template": (), "chat_template_kwargs": ({},),
    "disable_chat_template": (False,), "frequency_penalty": (0,), "function_call": ("none",), "functions": ([],),
    "guided_choice": (), "guided_grammar": (), "guided_json": (), "guided_regex": (), "ignore_eos": (False,),
    "include_stop_str_in_output": (False,), "logit_bias": ({},), "metadata": ({},), "min_p": (0,), "min_tokens": (0,),
    "modalities": (["text"],), "parallel_tool_calls": (False, True), "prediction": (), "presence_penalty": (0,),
    "prompt_cache_key": (), "reasoning_effort": (), "reasoning_max_tokens": (), "response_format": ({"type": "text"},),
    "return_token_ids": (False,), "safety_identifier": (), "service_tier": ("auto", "default"), "store": (False,),
    "structural_tag": (), "suffix": ("",), "tool_choice": ("none",), "tools": ([],), "top_a": (0,), "user": ("",),
    "verbosity": (), "web_search_options": (),
}  # fmt: skip


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class StreamOptions(_Strict):
    """Options of a stream.

    Attributes:
        include_usage: Whether a last event contains the number of tokens.
    """

    include_usage: bool | None = None


_Probability = Annotated[float, Field(gt=0, le=1)]
_Stops = Annotated[list[Annotated[str, Field(min_length=1)]], Field(max_length=_MAX_STOPS)]
_Ids = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]


class GenerationFields(_Strict):
    """Fields of both kinds of requests.

    Attributes:
        model: Name of the model.
        n: Number of texts per prompt; default 1.
        temperature: 0: greedy decoding; default 1.
        top_p: Probability mass of the most likely tokens to sample from; default 1.
        top_k: Number of most likely tokens to sample from; 0 or -1 (the default): all.
        repetition_penalty: Factor that makes tokens of prompt and text less likely; default 1.
        seed: Seed of the sampling; by default a new one for each request.
        stop: Texts that end a text.
        stop_token_ids: Token ids that end a text, besides those of the model.
        max_tokens: Maximum number of new tokens.
        stream: Whether the text is sent while it is generated.
        stream_options: Options of the stream.
    """

    model: str
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    temperature: Annotated[float, Field(ge=0)] | None = None
    top_p: _Probability | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Annotated[str, Field(min_length=1)] | _Stops | None = None
    stop_token_ids: list[Annotated[int, Field(ge=0)]] | None = None
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @model_validator(mode="before")
    @classmethod
    def _drop_neutral(cls, values: Any) -> Any:
        """Drop fields that are not supported if their values have no effect."""
        if not isinstance(values, dict):
            return values
        kept = {}
        for name, value in values.items():
            if name not in _NEUTRAL or name in cls.model_fields:
                kept[name] = value
            elif value is not None and value not in _NEUTRAL[name]:
                raise PydanticCustomError(
                    "unsupported", "The field {field} is not supported. Remove it.", {"field": str(name)}
                )
        return kept

    @model_validator(mode="after")
    def _check_stream_options(self) -> GenerationFields:
        if self.stream_options is not None and not self.stream:
            raise PydanticCustomError(
                "unsupported",
                "The field {field} needs stream = true. Remove it, or set stream.",
                {"field": "stream_options"},
            )
        return self

    @property
    def stops(self) -> list[str]:
        """Texts that end a text."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    @property
    def includes_usage(self) -> bool:
        """Whether the stream ends with the number of tokens."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    def strategy(self) -> DecodeStrategy:
        """Return how tokens are chosen. Without a seed, each call draws one."""
        temperature = 1.0 if self.temperature is None else self.temperature
        seed = secrets.randbits(62) if self.seed is None else self.seed % 2**63
        penalty = 1.0 if self.repetition_penalty is None else self.repetition_penalty
        if temperature == 0:
            return DecodeStrategy(repetition_penalty=penalty)
        top_k = self.top_k if self.top_k is not None and self.top_k > 0 else None
        return DecodeStrategy(temperature, top_k, self.top_p, penalty, seed=seed)


class CompletionRequest(GenerationFields):
    """Body of `POST /v1/completions`.

    Attributes:
        prompt: Text, token ids, or a list of texts or of lists of token ids.
        logprobs: Number of most likely tokens whose log-probabilities are returned with those of the text.
        echo: Whether the prompt is part of the text and, with `logprobs`, of the log-probabilities.
    """

    prompt: str | list[str] | _Ids | list[_Ids]
    logprobs: Annotated[int, Field(ge=0, le=_MAX_TOP_LOGPROBS)] | None = None
    echo: bool | None = None

    @model_validator(mode="after")
    def _check_tokens(self) -> CompletionRequest:
        if self.max_tokens == 0 and not self.echo:
            raise PydanticCustomError(
                "unsupported", "{field} = 0 needs echo = true. Use 1 or more.", {"field": "max_tokens"}
            )
        if isinstance(self.prompt, list) and not self.prompt:
            raise PydanticCustomError("unsupported", "The field {field} is empty. Give a prompt.", {"field": "prompt"})
        return self

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """The prompts as a list."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        is_one = isinstance(self.prompt[0], int)
        return cast("list[str] | list[list[int]]", [self.prompt] if is_one else self.prompt)


class TextPart(_Strict):
    """A part of a message.

    Attributes:
        type: "text"; other kinds are not supported.
        text: The text.
    """

    type: Literal["text"]
    text: str


class Message(_Strict):
    """A message of a conversation.

    Attributes:
        role: Author of the message. "developer" is read as "system".
        content: Text, or a list of texts, which are joined.
    """

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart]

    @property
    def text(self) -> str:
        """The whole text."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class ChatRequest(GenerationFields):
    """Body of `POST /v1/chat/completions`.

    Attributes:
        messages: The conversation. A system message is the first one, and the last one is a question.
        max_completion_tokens: Newer name of max_tokens.
        logprobs: Whether the log-probabilities of the tokens are returned.
        top_logprobs: Number of most likely tokens whose log-probabilities are returned, too.
    """

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=_MAX_TOP_LOGPROBS)] | None = None

    @model_validator(mode="after")
    def _check_chat(self) -> ChatRequest:
        problems = {
            "max_tokens": (self.max_tokens == 0, "{field} is 0. Use 1 or more."),
            "max_completion_tokens": (
                None not in (self.max_tokens, self.max_completion_tokens),
                "{field} and max_tokens have the same meaning. Remove one.",
            ),
            "top_logprobs": (
                bool(self.top_logprobs) and not self.logprobs,
                "{field} needs logprobs = true. Set it, or remove {field}.",
            ),
            "messages": (
                any(message.role in ("system", "developer") for message in self.messages[1:]),
                "{field}: a system message is not the first message. Move it to the beginning.",
            ),
        }
        for name, (is_wrong, message) in problems.items():
            if is_wrong:
                raise PydanticCustomError("unsupported", message, {"field": name})
        if self.messages[-1].role not in ("user", "tool"):
            raise PydanticCustomError(
                "unsupported",
                "{field}: the last message is not a question. End with a user message.",
                {"field": "messages"},
            )
        return self
