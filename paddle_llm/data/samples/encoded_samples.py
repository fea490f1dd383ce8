"""Encoded samples in flat arrays (8 bytes per token) and a report about their encoding."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from paddle_llm.core.artifacts import IGNORE_INDEX
from paddle_llm.core.console import say
from paddle_llm.core.counts import counted
from paddle_llm.core.errors import UserError
from paddle_llm.data.chat.notes import describe
from paddle_llm.data.chat.renderer import RowRejected
from paddle_llm.data.identity import DataIdentity, block_size, digest_of
from paddle_llm.data.instructions.conversation import Conversation
from paddle_llm.data.samples.encode import EncodedSample, InstructionEncoder, PromptTooLong
from paddle_llm.data.tokenizers.plain_text import NotText

_EXAMPLES = 3
LONG_SAMPLES = ("truncate", "refuse", "drop")


@dataclass
class EncodingReport:
    """Counts of what happened to the samples of a dataset.

    Attributes:
        samples: Number of samples that are trained on.
        cut_questions: Number of samples with a truncated question.
        cut_answers: Number of samples with a truncated answer.
        dropped_rounds: Number of samples that lost rounds.
        prompt_too_long: Number of samples whose template text exceeds src_length.
        no_loss: Number of samples without a token with loss.
        too_long: Number of samples longer than max_length.
        rejected: Number of samples that the template cannot render.
        tokens: Number of tokens of all samples.
        answer_tokens: Number of tokens with loss.
        examples: Origins of the first samples of each kind.
        notes: Counts of the kinds of notes (data/chat/notes.py).
        reasons: Counts of the reasons why templates rejected rows.
    """

    samples: int = 0
    cut_questions: int = 0
    cut_answers: int = 0
    dropped_rounds: int = 0
    prompt_too_long: int = 0
    no_loss: int = 0
    too_long: int = 0
    rejected: int = 0
    tokens: int = 0
    answer_tokens: int = 0
    examples: dict[str, list[str]] = field(default_factory=dict)
    notes: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)

    def note(self, kind: str, where: str) -> None:
        """Count one sample of a kind and record its origin if it is one of the first."""
        if hasattr(self, kind):
            setattr(self, kind, getattr(self, kind) + 1)
        else:
            self.notes[kind] += 1
        seen = self.examples.setdefault(kind, [])
        if len(seen) < _EXAMPLES:
            seen.append(where)

    @property
    def skipped(self) -> int:
        """Number of samples that are not trained on."""
        return self.prompt_too_long + self.no_loss + self.too_long + self.rejected

    def lines(self) -> list[str]:
        """Return one line for each kind that occurred."""
        texts = {
            "cut_questions": ("question", "truncated on the left to src_length"),
            "cut_answers": ("answer", "truncated, without EOS"),
            "dropped_rounds": ("sample", "shortened to max_length: the oldest rounds were dropped"),
            "prompt_too_long": ("sample", "skipped: the template alone is longer than src_length"),
            "too_long": ("sample", "skipped: longer than max_length"),
            "no_loss": ("sample", "skipped: no token has a loss"),
            "rejected": ("sample", f"skipped: {'; '.join(self.reasons)}"),
        }
        counts = {kind: getattr(self, kind) for kind in texts}
        lines = {kind: f"{counted(counts[kind], noun)} {text}" for kind, (noun, text) in texts.items() if counts[kind]}
        lines |= {kind: describe(kind, count) for kind, count in self.notes.items()}
        return [f"{line} (first: {'; '.join(self.examples[kind])})" for kind, line in lines.items()]


class EncodedSamples:
    """N samples in flat arrays.

    Attributes:
        lengths: Number of tokens of each sample, int64 [N].
        origins: File and line of each sample.
        report: Counts of what happened to the samples.
    """

    def __init__(self, samples: Iterable[tuple[EncodedSample, str]], report: EncodingReport) -> None:
        self.report = report
        self.origins: list[str] = []
        ids, labels, prefixes = [], [], []
        for sample, where in samples:
            ids.append(sample.input_ids)
            labels.append(sample.labels)
            prefixes.append(sample.prefix)
            self.origins.append(where)
        self.lengths = np.fromiter(map(len, ids), np.int64, len(ids))
        self._ends = np.cumsum(self.lengths)
        self._ids = np.concatenate([*ids, np.empty(0, np.int32)])
        self._labels = np.concatenate([*labels, np.empty(0, np.int32)])
        self._prefixes = np.array(prefixes, np.int32)

    def __len__(self) -> int:
        return len(self.lengths)

    def identity(self) -> DataIdentity:
        """Return digests of every token, label and length, of all samples and of blocks of them."""
        size = block_size(len(self))
        parts = {
            "samples": len(self),
            "token ids": digest_of(self.lengths, self._ids, self._prefixes),
            "labels": digest_of(self._labels),
            "blocks": [self._digest_of_block(first, first + size) for first in range(0, len(self), size)],
            "packed rows": None,
        }
        return DataIdentity(parts, self.origins.__getitem__)

    def _digest_of_block(self, first: int, stop: int) -> str:
        """Return 16 digits of a digest of the samples [first, stop)."""
        begin, end = self._ends[first] - self.lengths[first], self._ends[min(stop, len(self)) - 1]
        samples, tokens = slice(first, stop), slice(int(begin), int(end))
        found = digest_of(self.lengths[samples], self._ids[tokens], self._labels[tokens], self._prefixes[samples])
        return found[:16]

    def digest(self) -> str:
        """Return a digest of every token, label and length, as checkpoints without an identity of all data have it."""
        found = hashlib.sha256()
        for array in (self.lengths, self._ids, self._labels, self._prefixes):
            found.update(np.ascontiguousarray(array).data)
        return found.hexdigest()

    def __getitem__(self, index: int) -> EncodedSample:
        end = int(self._ends[index])
        part = slice(end - int(self.lengths[index]), end)
        return EncodedSample(self._ids[part], self._labels[part], int(self._prefixes[index]))


def encode_all(
    conversations: Iterable[Conversation],
    encoder: InstructionEncoder,
    *,
    long_samples: str = "truncate",
    skip_untrainable: bool = False,
) -> EncodedSamples:
    """Encode every conversation and report what was truncated or skipped.

    Args:
        conversations: The conversations.
        encoder: Encoder with template and lengths.
        long_samples: What to do with samples longer than max_length: "truncate", "refuse" (an error) or "drop".
        skip_untrainable: Whether to skip samples without a token with loss, samples that the template cannot render, and
            samples whose template text exceeds src_length; else they are an error.

    Raises:
        UserError: If samples are refused by these options, or no sample is left.
    """
    if long_samples not in LONG_SAMPLES:
        raise UserError(f"--long_samples {long_samples}: unknown. Use one of {', '.join(LONG_SAMPLES)}.")
    report = EncodingReport()
    encoded = EncodedSamples(_encoded(conversations, encoder, long_samples, report), report)
    _check_report(report, long_samples, skip_untrainable, encoder)
    for line in report.lines():
        say(line)
    if not len(encoded):
        raise UserError("no sample to train on: all were skipped. See the reasons above.")
    return encoded


def _encoded(
    conversations: Iterable[Conversation], encoder: InstructionEncoder, long_samples: str, report: EncodingReport
) -> Iterable[tuple[EncodedSample, str]]:
    for conversation in conversations:
        where = conversation.where
        try:
            sample = encoder(conversation)
        except PromptTooLong:
            report.note("prompt_too_long", where)
            continue
        except RowRejected as error:
            report.note("rejected", where)
            report.reasons[error.reason] += 1
            continue
        except NotText as error:
            raise UserError(f"{where}: {error}") from error
        encoder.codec.require_rows([sample.input_ids.max(initial=-1), sample.labels.max(initial=-1)], where)
        is_cut = sample.cut_question or sample.cut_answer or sample.dropped_rounds > 0
        if is_cut and long_samples != "truncate":
            report.note("too_long", where)
            continue
        for kind, done in (
            ("cut_questions", sample.cut_question),
            ("cut_answers", sample.cut_answer),
            ("dropped_rounds", sample.dropped_rounds > 0),
        ):
            if done:
                report.note(kind, where)
        with_loss = int((sample.labels != IGNORE_INDEX).sum())
        if not with_loss:
            report.note("no_loss", where)
            continue
        for kind in sample.notes:
            report.note(kind, where)
        report.samples += 1
        report.tokens += len(sample.input_ids)
        report.answer_tokens += with_loss
        yield sample, where


def _check_report(
    report: EncodingReport, long_samples: str, skip_untrainable: bool, encoder: InstructionEncoder
) -> None:
    if report.too_long and long_samples == "refuse":
        raise UserError(
            f"Longer than --max_length {encoder.max_length} (or --src_length {encoder.src_length}): "
            f"{counted(report.too_long, 'sample')}, the first: {'; '.join(report.examples['too_long'])}. "
            "Increase the length, or set --long_samples to truncate or drop."
        )
    for kind, problem in (
        ("prompt_too_long", f"The template alone is longer than --src_length {encoder.src_length}"),
        ("no_loss", "No token has a loss (the answer is truncated, or its loss flag is 0)"),
        ("rejected", f"The chat template cannot render these rows ({'; '.join(report.reasons)})"),
    ):
        if getattr(report, kind) and not skip_untrainable:
            remedy = "choose another --chat_template" if kind == "rejected" else "increase the length"
            raise UserError(
                f"{problem}: {counted(getattr(report, kind), 'sample')}, the first: {'; '.join(report.examples[kind])}. "
                f"Correct them, {remedy}, or skip them with --skip_bad_rows."
            )
