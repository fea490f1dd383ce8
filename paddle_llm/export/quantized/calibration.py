"""Calibration samples of GPTQ: token sequences of one length from texts or rows of instructions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from paddle_llm.core.artifacts import IGNORE_INDEX
from paddle_llm.core.console import say
from paddle_llm.core.counts import counted
from paddle_llm.core.errors import UserError
from paddle_llm.data.samples.encode import PromptTooLong
from paddle_llm.data.tokenizers.plain_text import NotText
from paddle_llm.data.tokenizers.text_codec import open_codec
from paddle_llm.export.source.source import Source
from paddle_llm.families.positions import position_limit
from paddle_llm.generation.evaluation.inputs import Inputs, read_inputs
from paddle_llm.generation.requests import TemplateSettings, choose_reader
from paddle_llm.models.prompt import Prompt

DEFAULT_SAMPLES, DEFAULT_LENGTH = 128, 512


def read_calibration(source: Source, files: Sequence[Path], samples: int, length: int) -> list[Prompt]:
    """Return samples of `length` tokens, evenly spaced over the tokens of all files.

    Texts are tokenized as a whole. Rows of instructions are encoded with the chat template of the model, and follow each other.

    Args:
        source: The model, with its tokenizer.
        files: Files of one kind; see `read_inputs`.
        samples: Maximum number of samples.
        length: Tokens per sample.

    Raises:
        UserError: If the model has no tokenizer or too few positions, or the files have too few tokens.
    """
    if source.tokenizer is None:
        raise UserError(f"--calibration needs a tokenizer, and {source.folder} has none. Give one with --tokenizer.")
    limit = position_limit(source.config)
    if limit is not None and length > limit:
        raise UserError(f"--calibration_length {length} exceeds the model's {limit} positions. Use {limit} or less.")
    ids = _tokens(source, read_inputs(files))
    windows = len(ids) // length
    if not windows:
        raise UserError(
            f"--calibration has {counted(len(ids), 'token')}, fewer than --calibration_length {length}. Use more text."
        )
    if windows < samples:
        say(f"--calibration has {counted(len(ids), 'token')}: {windows} samples of {length} instead of {samples}")
    chosen = np.unique(np.linspace(0, windows - 1, min(samples, windows)).round().astype(int))
    return [_prompt(source, ids[number * length : (number + 1) * length]) for number in chosen]


def _tokens(source: Source, inputs: Inputs) -> list[int]:
    codec = open_codec(str(source.tokenizer))
    codec.fit_to_model(source.facts.vocab_size)
    ids: list[int] = []
    for text in inputs.texts:
        ids += [*codec.prefix_ids, *codec.encode_with_specials(text)]
    if inputs.requests:
        settings = TemplateSettings(
            requested=None,
            trained_with=source.template,
            record_folder=source.template_folder,
            tokenizer_folder=str(source.tokenizer),
            src_length=(position_limit(source.config) or 2048) - 1,
        )
        reader = choose_reader(inputs.requests, codec, settings)
        say(reader.notice)
        assert reader.encoder is not None, "rows of instructions have a template"
        for request in inputs.requests:
            try:
                sample = reader.encoder(reader.conversation(request))
            except PromptTooLong:
                continue
            except NotText as error:
                raise UserError(f"{request.where}: {error}") from error
            ids += [*sample.input_ids.tolist(), *(int(one) for one in sample.labels[-1:] if one != IGNORE_INDEX)]
    codec.require_rows(ids, "--calibration")
    return ids


def _prompt(source: Source, ids: list[int]) -> Prompt:
    """Return a sample as the network reads it; for ChatGLM-6B it ends with the tokens that end a context."""
    marks = [getattr(source.config, name) for name in source.family.network.prompt_marks]
    if not source.family.network.bidirectional_prefix or not marks:
        return Prompt(ids)
    return Prompt([*ids[: -len(marks)], *marks], len(ids) - 1)
