"""Encodes prompts: conversations with a chat template, and plain texts."""

from __future__ import annotations

from paddle_llm.core.errors import UserError
from paddle_llm.data.instructions.conversation import Conversation
from paddle_llm.data.samples.encode import InstructionEncoder
from paddle_llm.data.tokenizers.text_codec import TextCodec
from paddle_llm.models.prompt import Prompt


def encode_prompt(encoder: InstructionEncoder, conversation: Conversation) -> Prompt:
    """Encode a conversation up to its last answer, with the same tokens as in training.

    Raises:
        PromptTooLong: If the template around an empty question is longer than the encoder's src_length.
    """
    sample = encoder.prompt(conversation)
    ids = sample.input_ids.tolist() or _first_token(encoder.codec)
    return Prompt(ids, sample.prefix, sample.cut_question, sample.dropped_rounds, sample.notes)


def encode_text(codec: TextCodec, text: str) -> Prompt:
    """Encode a plain text, with the tokens that the tokenizer adds around texts.

    Raises:
        UserError: If the text is empty.
    """
    if not text:
        raise UserError("The prompt is empty. Write at least one word.")
    ids = [*codec.prefix_ids, *codec.encode(text)]
    if codec.prefix_lm is None:
        return Prompt(ids)
    ids += codec.prefix_lm
    return Prompt(ids, len(ids) - 1)


def check_text(text: str, where: str) -> None:
    """Check that a text is valid Unicode. Bytes of another encoding on a command line become lone surrogates.

    Raises:
        UserError: If a character cannot be written as UTF-8.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(
            f"{where}: not UTF-8 text at character {error.start + 1}: {ascii(text[error.start])}. Write it in UTF-8."
        ) from None


def _first_token(codec: TextCodec) -> list[int]:
    """Return the BOS or EOS token for an empty prompt, since a network must read at least one token."""
    known = [token for token in (codec.bos_id, codec.eos_id) if token is not None]
    if not known:
        raise UserError(
            f"The question is empty, and the tokenizer {codec.name} has no BOS or EOS token. Write at least one word."
        )
    return known[:1]
