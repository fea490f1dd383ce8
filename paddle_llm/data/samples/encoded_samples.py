"""Encoded samples in flat arrays (8 bytes a token, whatever their number), and the account of how they came to be."""

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
from paddle_llm.data.chat.rendering import RowRefused
from paddle_llm.data.instructions.formats import Conversation
from paddle_llm.data.samples.encode import DoesNotFit, EncodedSample, InstructionEncoder
from paddle_llm.data.tokenizers.plain_text import NotText

_SHOWN = 3
LONG_SAMPLES = ("truncate", "refuse", "drop")


@dataclass
class EncodingReport:
    """What was done to samples, by count. `examples`: where the first of each kind are. `notes`: counts of what data/chat/notes.py
    has a sentence for. `reasons`: counts of why templates refused rows."""

    samples: int = 0
    cut_questions: int = 0
    cut_answers: int = 0
    dropped_rounds: int = 0
    does_not_fit: int = 0
    no_loss: int = 0
    too_long: int = 0
    refused: int = 0
    tokens: int = 0
    answer_tokens: int = 0
    examples: dict[str, list[str]] = field(default_factory=dict)
    notes: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)

    def note(self, kind: str, where: str) -> None:
        """Count one of a kind, and remember where."""
        if hasattr(self, kind):
            setattr(self, kind, getattr(self, kind) + 1)
        else:
            self.notes[kind] += 1
        seen = self.examples.setdefault(kind, [])
        if len(seen) < _SHOWN:
            seen.append(where)

    @property
    def left_out(self) -> int:
        """Samples that are not trained on."""
        return self.does_not_fit + self.no_loss + self.too_long + self.refused

    def lines(self) -> list[str]:
        """What a user should know, one line each; nothing where nothing was done."""
        told = {
            "cut_questions": ("question", "cut from the left to src_length"),
            "cut_answers": ("answer", "cut, without EOS at the end"),
            "dropped_rounds": ("sample", "shortened to max_length: the oldest rounds were dropped"),
            "does_not_fit": ("sample", "left out: the template alone is longer than src_length"),
            "too_long": ("sample", "left out: longer than max_length"),
            "no_loss": ("sample", "left out: no token bears loss"),
            "refused": ("sample", f"left out: {'; '.join(self.reasons)}"),
        }
        counts = {kind: getattr(self, kind) for kind in told}
        lines = {kind: f"{counted(counts[kind], noun)} {what}" for kind, (noun, what) in told.items() if counts[kind]}
        lines |= {kind: describe(kind, count) for kind, count in self.notes.items()}
        return [f"{line} (first: {'; '.join(self.examples[kind])})" for kind, line in lines.items()]


class EncodedSamples:
    """N samples end to end.

    Attributes:
        lengths: int64 [N] tokens of each; wheres: where each came from; report: how they came to be.
    """

    def __init__(self, samples: Iterable[tuple[EncodedSample, str]], report: EncodingReport):
        self.report = report
        self.wheres: list[str] = []
        ids, labels, prefixes = [], [], []
        for sample, where in samples:
            ids.append(sample.input_ids)
            labels.append(sample.labels)
            prefixes.append(sample.prefix)
            self.wheres.append(where)
        self.lengths = np.fromiter(map(len, ids), np.int64, len(ids))
        self._ends = np.cumsum(self.lengths)
        self._ids = np.concatenate([*ids, np.empty(0, np.int32)])
        self._labels = np.concatenate([*labels, np.empty(0, np.int32)])
        self._prefixes = np.array(prefixes, np.int32)

    def __len__(self) -> int:
        return len(self.lengths)

    def digest(self) -> str:
        """Return a digest of every token, label and length."""
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
    drop_unlearnable: bool = False,
) -> EncodedSamples:
    """Encode every conversation, once; what was cut or left out is said.

    Args:
        long_samples: what to do with samples longer than max_length: truncate (count them), refuse, or drop (count them).
        drop_unlearnable: leave out samples without a token that bears loss, or that the template alone fills; else they are
            refused.

    Raises:
        UserError: as asked for above; nothing left.
    """
    if long_samples not in LONG_SAMPLES:
        raise UserError(f"--long_samples {long_samples}: is none of {', '.join(LONG_SAMPLES)}.")
    report = EncodingReport()
    encoded = EncodedSamples(_encoded(conversations, encoder, long_samples, report), report)
    _refuse(report, long_samples, drop_unlearnable, encoder)
    for line in report.lines():
        say(line)
    if not len(encoded):
        raise UserError("no sample is left to train on.")
    return encoded


def _encoded(
    conversations: Iterable[Conversation], encoder: InstructionEncoder, long_samples: str, report: EncodingReport
) -> Iterable[tuple[EncodedSample, str]]:
    for conversation in conversations:
        where = conversation.where
        try:
            sample = encoder(conversation)
        except DoesNotFit:
            report.note("does_not_fit", where)
            continue
        except RowRefused as error:
            report.note("refused", where)
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
        bearing = int((sample.labels != IGNORE_INDEX).sum())
        if not bearing:
            report.note("no_loss", where)
            continue
        for kind in sample.notes:
            report.note(kind, where)
        report.samples += 1
        report.tokens += len(sample.input_ids)
        report.answer_tokens += bearing
        yield sample, where


def _refuse(report: EncodingReport, long_samples: str, drop_unlearnable: bool, encoder: InstructionEncoder) -> None:
    if report.too_long and long_samples == "refuse":
        raise UserError(
            f"Longer than --max_length {encoder.max_length} (or --src_length {encoder.src_length}): "
            f"{counted(report.too_long, 'sample')}, the first: {'; '.join(report.examples['too_long'])}. "
            "Raise the length, or give --long_samples truncate or drop."
        )
    for kind, what in (
        ("does_not_fit", f"The template alone is longer than --src_length {encoder.src_length}"),
        ("no_loss", "No token bears loss"),
        ("refused", f"The chat template cannot write these rows ({'; '.join(report.reasons)})"),
    ):
        if getattr(report, kind) and not drop_unlearnable:
            raise UserError(
                f"{what}: {counted(getattr(report, kind), 'sample')}, the first: {'; '.join(report.examples[kind])}. Correct them, "
                f"{'choose another --chat_template' if kind == 'refused' else 'raise the length'}, or leave them out with --skip_bad_rows."
            )
