"""`ServedModel`: the tokenizer, chat template and limits of a served model. It encodes prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from paddle_llm.core.artifacts import CHAT_TEMPLATE_RECORD
from paddle_llm.core.console import say, say_once
from paddle_llm.core.errors import UserError
from paddle_llm.data.chat.notes import describe
from paddle_llm.data.instructions.conversation import Conversation, Turn
from paddle_llm.data.tokenizers.text_codec import TextCodec, open_codec
from paddle_llm.generation.requests import NONE, PromptReader, Request, TemplateSettings, choose_reader
from paddle_llm.generation.static.program import ProgramDescription, read_description
from paddle_llm.models.configuration.generation_settings import describe_unapplied, read_generation
from paddle_llm.models.prompt import Prompt
from paddle_llm.serving.engine.messages import Ready
from paddle_llm.serving.errors import RequestError
from paddle_llm.serving.options import ServeOptions

_MOST_CHARACTERS = 64  # of one token
_UNLIMITED = 1 << 20  # tokens of a prompt; longer ones than the model's positions are refused, not truncated


@dataclass(frozen=True)
class ServedModel:
    """A model as requests see it.

    Attributes:
        names: Names of the model in requests; the first one is used in responses.
        codec: The tokenizer.
        description: Description of its program.
        max_length: Maximum number of tokens of a prompt and its answer.
        chat: Encoder of conversations; None: no chat template.
    """

    names: tuple[str, ...]
    codec: TextCodec
    description: ProgramDescription
    max_length: int
    chat: PromptReader | None
    _token_texts: dict[int, str] = field(default_factory=dict)

    @property
    def stop_ids(self) -> frozenset[int]:
        """Token ids that end a plain text."""
        eos_id = self.codec.eos_id
        return frozenset(self.description.end_ids) | (frozenset() if eos_id is None else frozenset([eos_id]))

    @property
    def chat_stop_ids(self) -> frozenset[int]:
        """Token ids that end an answer."""
        return self.stop_ids | (self.chat.stop_ids if self.chat is not None else frozenset())

    def encode_text(self, text: str) -> Prompt:
        """Encode a plain text.

        Raises:
            RequestError: If it is empty, not text, or too long.
        """
        self._check_characters(len(text), "prompt")
        try:
            prompt = PromptReader(self.codec, None, "")(Request(text, where="prompt"))
        except UserError as error:
            raise RequestError(str(error), param="prompt") from None
        return self._checked(prompt, "prompt")

    def encode_ids(self, ids: Sequence[int]) -> Prompt:
        """Use token ids as a prompt, without the tokens that the tokenizer adds around texts.

        Raises:
            RequestError: If there are none, one is outside the vocabulary, or there are too many.
        """
        if not ids:
            raise RequestError("The prompt is empty. Give at least one token id.", param="prompt")
        size = self.description.vocab_size
        wrong = next((number for number in ids if not 0 <= number < size), None)
        if wrong is not None:
            raise RequestError(f"The token id {wrong} is outside the vocabulary. Use 0 to {size - 1}.", param="prompt")
        return self._checked(Prompt(list(ids)), "prompt")

    def encode_chat(self, turns: Sequence[Turn]) -> Prompt:
        """Encode a conversation that ends with a question.

        Raises:
            RequestError: If there is no chat template, or the conversation is not text or too long.
        """
        if self.chat is None:
            raise RequestError("The model is served without a chat template. Use /v1/completions.", param="messages")
        self._check_characters(sum(len(turn.content) for turn in turns), "messages")
        try:
            prompt = self.chat(Request(conversation=Conversation(tuple(turns), where="messages"), where="messages"))
        except UserError as error:
            raise RequestError(str(error), param="messages") from None
        for kind in prompt.notes:
            say_once(f"messages: {describe(kind, 1)}. Further ones are not reported.")
        return self._checked(prompt, "messages")

    def token_text(self, token: int) -> str:
        """Return a token as text, with a blank at its start, if any."""
        if token not in self._token_texts:
            self._token_texts[token] = self.codec.show([token])
        return self._token_texts[token]

    def _check_characters(self, count: int, param: str) -> None:
        """Refuse a text that cannot fit, because its encoding would take seconds."""
        if count > self.max_length * _MOST_CHARACTERS:
            raise RequestError(
                f"The prompt has {count} characters, more than {_MOST_CHARACTERS} for each of the {self.max_length} tokens "
                "with which the model is served. Shorten the prompt.",
                param=param,
                code="context_length_exceeded",
            )

    def _checked(self, prompt: Prompt, param: str) -> Prompt:
        if len(prompt) > self.max_length:
            raise RequestError(
                f"The prompt has {len(prompt)} tokens, and the model is served with {self.max_length} tokens for prompt and "
                "answer together. Shorten the prompt.",
                param=param,
                code="context_length_exceeded",
            )
        return prompt


def open_served_model(ready: Ready, options: ServeOptions) -> ServedModel:
    """Open the tokenizer and choose the chat template of a static program, as `paddle-llm generate --static` does.

    Args:
        ready: Message of the engine.
        options: Options of the server.

    Raises:
        UserError: If the tokenizer cannot be read or the template does not exist.
    """
    folder = ready.program
    tokenizer = options.engine.tokenizer or folder
    codec = open_codec(str(tokenizer))
    description = read_description(folder)
    codec.fit_to_model(description.vocab_size)
    line = describe_unapplied(read_generation(folder), (), folder)
    if line:
        say(f"{line.partition(' Greedy decoding')[0]} The fields of a request decide.")
    has_record = (folder / CHAT_TEMPLATE_RECORD).is_file()
    chat = None
    if options.chat_template == NONE:
        say("no chat template, as requested: /v1/chat/completions is not available")
    else:
        settings = TemplateSettings(
            requested=options.chat_template,
            trained_with=description.template,
            record_folder=folder if has_record else None,
            tokenizer_folder=str(tokenizer),
            src_length=_UNLIMITED,
            date=options.chat_template_date,
        )
        chat = choose_reader((), codec, settings)
        say(chat.notice)
    names = options.served_model_names or (options.engine.folder.expanduser().resolve().name,)
    return ServedModel(names, codec, description, ready.max_length, chat)
