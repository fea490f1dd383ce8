"""Prompts as tokens: a conversation through a template, or text to be continued as it stands; and what ends an answer."""

from __future__ import annotations

from paddle_llm.core.errors import UserError
from paddle_llm.data.instructions.formats import Conversation
from paddle_llm.data.samples.encode import InstructionEncoder
from paddle_llm.data.tokenizers.text_codec import TextCodec
from paddle_llm.models.prompt import Prompt


def encode_prompt(encoder: InstructionEncoder, conversation: Conversation) -> Prompt:
    """What stands before the last answer, as in training.

    Raises:
        DoesNotFit: the template around an empty question is longer than the encoder's src_length.
    """
    sample = encoder.prompt(conversation)
    ids = sample.input_ids.tolist() or _beginning(encoder.codec)
    return Prompt(ids, sample.prefix, sample.cut_question, sample.dropped_rounds, sample.notes)


def encode_text(codec: TextCodec, text: str) -> Prompt:
    """A text to be continued, with what the tokenizer puts around texts.

    Raises:
        UserError: an empty text.
    """
    if not text:
        raise UserError("the prompt is empty; give at least one word")
    ids = [*codec.prefix_ids, *codec.encode(text)]
    if codec.prefix_lm is None:
        return Prompt(ids)
    ids += codec.prefix_lm
    return Prompt(ids, len(ids) - 1)


def check_text(text: str, where: str) -> None:
    """Refuse text with lone surrogates, which bytes of another encoding on a command line become.

    Raises:
        UserError: If a character cannot be written as UTF-8.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(
            f"{where}: not UTF-8 text at character {error.start + 1}: {ascii(text[error.start])}. Write it in UTF-8."
        ) from None


def stop_ids(encoder: InstructionEncoder) -> frozenset[int]:
    """What ends an answer: what the template's answers end with, and the tokenizer's end of sentence."""
    end = encoder.codec.eos_id
    return frozenset([*encoder.stop_ids, *([] if end is None else [end])])


def _beginning(codec: TextCodec) -> list[int]:
    """An empty prompt: a network must read something."""
    known = [token for token in (codec.bos_id, codec.eos_id) if token is not None]
    if not known:
        raise UserError(f"an empty question, and the tokenizer {codec.name} has no token to begin with")
    return known[:1]
