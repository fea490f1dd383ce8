"""Token ids that end a text, according to a model folder, a chat template or a tokenizer folder."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from paddle_llm.core.console import say
from paddle_llm.core.errors import UserError
from paddle_llm.data.chat.selection import AUTO, choose_template
from paddle_llm.data.samples.encode import InstructionEncoder
from paddle_llm.data.tokenizers.text_codec import TextCodec, open_codec
from paddle_llm.models.configuration.generation_settings import (
    additional_eos_note,
    end_ids,
    read_generation,
    unreachable_eos_note,
)


def ids_in(value: object) -> list[int]:
    """Return the ids in a field that holds an id, a list of ids or None."""
    return [number for number in (value if isinstance(value, list) else [value]) if isinstance(number, int)]


def stop_ids_of_encoder(encoder: InstructionEncoder) -> frozenset[int]:
    """Return the ids that end an answer: those of the chat template and the tokenizer's EOS."""
    return frozenset(_encoder_ids(encoder))


def stop_ids_of_model(folder: Path, config: dict[str, Any], vocab_size: int, codec: TextCodec) -> frozenset[int]:
    """Return the ids that end a text of a model, and report unusual ones.

    Args:
        folder: The model folder.
        config: Contents of its config.json.
        vocab_size: Size of the model's vocabulary.
        codec: The tokenizer.

    Raises:
        UserError: If an entry is not an id, a list of ids or null.
    """
    settings = read_generation(folder)
    ids = {*end_ids(settings, config, folder), *_eos(codec)}
    if line := unreachable_eos_note(ids, vocab_size):
        say(f"{folder}: {line}. Correct eos_token_id in config.json or generation_config.json.")
    if line := additional_eos_note(settings, ids):
        say(f"{folder}: {line}")
    return frozenset(ids)


def stop_ids_of_tokenizer(tokenizer: Path, template: str | None, record_folder: Path | None) -> list[int]:
    """Return the ids of a tokenizer folder: those of the chat template of training, then the EOS.

    Args:
        tokenizer: The tokenizer folder.
        template: --chat_template of training; None: unknown.
        record_folder: Folder that records the template of training; None: there is no record.

    Returns:
        The ids; [] if the tokenizer or the template cannot be read. The code that copies them reports that.
    """
    try:
        codec = open_codec(str(tokenizer))
        if record_folder is None and template is None:
            return _eos(codec)
        name = AUTO if record_folder is not None else template
        trained = str(record_folder) if record_folder is not None else None
        chosen = choose_template(name, codec, str(tokenizer), trained=trained)
        return _encoder_ids(InstructionEncoder(codec, chosen.template, max_length=2))
    except UserError:
        return []


def known_ids(ids: Iterable[int], vocab_size: int) -> list[int]:
    """Return each id of the vocabulary once, in order."""
    return [number for number in dict.fromkeys(ids) if 0 <= number < vocab_size]


def _encoder_ids(encoder: InstructionEncoder) -> list[int]:
    return [*encoder.stop_ids, *_eos(encoder.codec)]


def _eos(codec: TextCodec) -> list[int]:
    return [] if codec.eos_id is None else [codec.eos_id]
