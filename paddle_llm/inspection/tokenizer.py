"""Sections "tokenizer" and "chat template" of the report on a folder with a tokenizer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from paddle_llm.config.local_files.chat_templates import find_templates
from paddle_llm.core.artifacts import (
    PADDLENLP_SENTENCEPIECE_MODEL,
    SENTENCEPIECE_MODEL,
    TOKENIZER_CONFIG,
    TOKENIZER_JSON,
)
from paddle_llm.core.errors import UserError
from paddle_llm.data.chat.selection import choose_template
from paddle_llm.data.instructions.conversation import ASSISTANT, Conversation, Turn
from paddle_llm.data.samples.encode import EncodedSample, InstructionEncoder, PromptTooLong
from paddle_llm.data.tokenizers.text_codec import (
    PaddleNLPCodec,
    SentencePieceCodec,
    TextCodec,
    TransformersCodec,
    open_codec,
)
from paddle_llm.inspection.report import Level, Section

TOKENIZER_FILES = (TOKENIZER_CONFIG, TOKENIZER_JSON, SENTENCEPIECE_MODEL, PADDLENLP_SENTENCEPIECE_MODEL)
_LIBRARIES = {
    SentencePieceCodec: "sentencepiece",
    PaddleNLPCodec: "PaddleNLP's AutoTokenizer",
    TransformersCodec: "transformers' AutoTokenizer",
}
LOSS_MARKS = ("⟦", "⟧")  # around text with a loss
SAMPLE = Conversation(
    (
        Turn("system", "Be brief."),
        Turn("user", "What is 2 + 2?"),
        Turn(ASSISTANT, "4"),
        Turn("user", "你好"),
        Turn(ASSISTANT, "Hello! 😀"),
    ),
    where="the sample conversation",
)


def has_tokenizer(folder: Path) -> bool:
    """Return whether a folder has files of a tokenizer."""
    return any((folder / name).is_file() for name in TOKENIZER_FILES)


def inspect_tokenizer(folder: Path, vocab_size: int | None) -> tuple[list[Section], TextCodec | None]:
    """Describe the tokenizer and the chat template of a folder.

    Args:
        folder: Folder to describe.
        vocab_size: Size of the model's vocabulary; None if the folder has no model.

    Returns:
        Sections; tokenizer, None if it cannot be read.
    """
    section, template = Section("tokenizer"), Section("chat template")
    codec: TextCodec | None = None
    with section.collect_messages():
        codec = open_codec(str(folder))
        _describe(section, codec, vocab_size)
    if codec is None:
        return [section], None
    with template.collect_messages():
        _describe_template(template, codec, folder)
    return [section, template], codec


def _describe(section: Section, codec: TextCodec, vocab_size: int | None) -> None:
    ids = {name: codec.special_id(name) for name in codec.specials}
    size = max([codec.vocab_size - 1, *(number for number in ids.values() if number is not None)]) + 1
    section.facts |= {
        "read by": _LIBRARIES[type(codec)],
        "tokens": size,
        "bos": _token(codec, codec.bos_id),
        "eos": _token(codec, codec.eos_id),
        "pad": _token(codec, codec.pad_id),
        "in front of a text": codec.show(codec.prefix_ids) or None,
        "special tokens": dict(sorted(ids.items(), key=lambda item: item[1] or 0)),
    }
    if vocab_size is None:
        return
    section.facts["model's vocabulary"] = vocab_size
    codec.fit_to_model(vocab_size)
    if size < vocab_size:
        section.add(
            Level.NOTE, f"{size} tokens, {vocab_size} embeddings: the last {vocab_size - size} embeddings have no token"
        )


def _token(codec: TextCodec, number: int | None) -> dict[str, Any] | None:
    return None if number is None else {"id": number, "token": codec.show([number])}


def _describe_template(section: Section, codec: TextCodec, folder: Path) -> None:
    chosen = choose_template(None, codec, str(folder))
    found = find_templates(folder)
    section.facts |= {"template": chosen.template.name, "why": chosen.why, "source": found.where if found else None}
    if found is not None:
        section.facts |= {"names": list(found.by_name), "files not read": list(found.ignored)}
    encoder = InstructionEncoder(codec, chosen.template, max_length=4096)
    section.facts["answers end with"] = [_token(codec, number) for number in encoder.stop_ids]
    conversation = SAMPLE
    sample, reason = _encode(encoder, conversation)
    if sample is None:  # many templates take no system message
        conversation = Conversation(SAMPLE.turns[1:], where=SAMPLE.where)
        sample, second = _encode(encoder, conversation)
        if sample is not None:
            section.add(Level.NOTE, f"a system message is refused: {reason}")
    if sample is None:
        section.add(Level.REFUSED, second)
        return
    section.facts["sample"] = "".join(_marked(codec, sample))
    section.facts["sample ids"] = [int(sample.input_ids[0]), *_targets(sample)]


def _encode(encoder: InstructionEncoder, conversation: Conversation) -> tuple[EncodedSample | None, str]:
    try:
        return encoder(conversation), ""
    except (UserError, PromptTooLong) as error:
        return None, str(error)


def _targets(sample: EncodedSample) -> list[int]:
    """Return all ids after the first one: the inputs, and the last label, which is not an input."""
    trained = [int(label) for label in sample.labels]
    shown = [int(number) for number in sample.input_ids[1:]]
    return [*shown, trained[-1]] if trained and trained[-1] >= 0 else shown


def _marked(codec: TextCodec, sample: EncodedSample) -> Iterator[str]:
    """Yield the text of a sample, with marks around the parts that have a loss."""
    ids = [int(sample.input_ids[0]), *_targets(sample)]
    has_loss = [False, *(int(label) >= 0 for label in sample.labels)][: len(ids)]
    start = 0
    for stop in range(1, len(ids) + 1):
        if stop == len(ids) or has_loss[stop] != has_loss[start]:
            text = codec.show(ids[start:stop])
            yield f"{LOSS_MARKS[0]}{text}{LOSS_MARKS[1]}" if has_loss[start] else text
            start = stop
