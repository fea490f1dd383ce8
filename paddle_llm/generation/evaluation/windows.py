"""Sliding windows over a text, and rows of instructions, as samples whose tokens are scored. Does not import Paddle."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from paddle_llm.core.artifacts import IGNORE_INDEX
from paddle_llm.core.console import say
from paddle_llm.core.counts import counted
from paddle_llm.core.errors import UserError
from paddle_llm.data.samples.encode import PromptTooLong
from paddle_llm.data.tokenizers.plain_text import NotText
from paddle_llm.data.tokenizers.text_codec import TextCodec
from paddle_llm.generation.requests import PromptReader, Request
from paddle_llm.models.prompt import Prompt


@dataclass(frozen=True)
class ScoredSample:
    """Tokens that are read together, and the tokens to be predicted.

    Attributes:
        prompt: The S tokens that are read.
        targets_S: Token after each of them; IGNORE_INDEX if it is not scored.
    """

    prompt: Prompt
    targets_S: np.ndarray

    @property
    def scored(self) -> int:
        """Number of scored tokens."""
        return int((self.targets_S != IGNORE_INDEX).sum())


def sliding_windows(ids: Sequence[int], context_length: int, stride: int) -> Iterator[ScoredSample]:
    """Yield windows of `context_length` tokens that begin every `stride` tokens; the last one may be shorter.

    Each token is scored once, in the first window that contains it, except the first token of the text. If the stride is
    the context length, the first token of every window has no context and is not scored: these are the windows of the
    tables of GPTQ (Frantar et al. 2023), which in addition drop a shorter last window.

    Args:
        ids: Tokens of a text.
        context_length: Tokens per window, at least 2.
        stride: Distance between the beginnings of two windows, 1 to `context_length`.
    """
    scored_until = 0
    for begin in range(0, len(ids), stride):
        window = np.asarray(ids[begin : begin + context_length], np.int64)
        targets_S = window[1:].copy()
        targets_S[: max(scored_until - begin - 1, 0)] = IGNORE_INDEX
        scored_until = begin + len(window)
        if len(targets_S):
            yield ScoredSample(Prompt(window[:-1].tolist()), targets_S)
        if scored_until == len(ids):
            return


def text_samples(codec: TextCodec, texts: Sequence[str], context_length: int, stride: int) -> list[ScoredSample]:
    """Tokenize each text as a whole, names of special tokens included, and return its windows.

    Raises:
        UserError: If the family's prompts are bidirectional, or no text has two tokens.
    """
    if codec.prefix_lm is not None:
        raise UserError(
            f"The perplexity of plain text is not defined for {codec.name}, whose prompts are bidirectional. Use rows of "
            "instructions: their answers are scored."
        )
    samples: list[ScoredSample] = []
    for number, text in enumerate(texts, 1):
        ids = [*codec.prefix_ids, *codec.encode_with_specials(text)]
        codec.require_rows(ids, f"text {number}")
        samples += sliding_windows(ids, context_length, stride)
    if not samples:
        raise UserError("--input has fewer than two tokens. Use a longer text.")
    return samples


def answer_samples(reader: PromptReader, requests: Sequence[Request]) -> list[ScoredSample]:
    """Encode rows as in training: the tokens of the answers and of their ends are scored.

    Rows without an answer, or whose template does not fit, are skipped and counted, as are shortened ones.

    Raises:
        UserError: If no row has an answer, or a row cannot be encoded.
    """
    assert reader.encoder is not None, "rows of instructions have a template"
    found, skipped, cut = [], [], []
    for request in requests:
        if request.conversation is None or request.reference is None:
            skipped.append(request.where)
            continue
        try:
            sample = reader.encoder(reader.conversation(request))
        except PromptTooLong:
            skipped.append(request.where)
            continue
        except NotText as error:
            raise UserError(f"{request.where}: {error}") from error
        reader.codec.require_rows(sample.input_ids.tolist(), request.where)
        scored = ScoredSample(Prompt(sample.input_ids.tolist(), sample.prefix), sample.labels.astype(np.int64))
        if not scored.scored:
            skipped.append(request.where)
            continue
        if sample.cut_question or sample.cut_answer or sample.dropped_rounds:
            cut.append(request.where)
        found.append(scored)
    if skipped:
        say(
            f"{counted(len(skipped), 'row')} of {len(requests)} skipped: no answer within the context (first: {skipped[0]})"
        )
    if cut:
        say(f"{counted(len(cut), 'row')} of {len(requests)} shortened to the context (first: {cut[0]})")
    if not found:
        raise UserError("--input has no row with an answer. Add answers, or raise --context_length.")
    return found
