"""Statistics of encoded samples (`paddle-llm data inspect --finetune`): lengths, and padding with and without packing.

Also shows samples as text with the trained tokens marked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from paddle_llm.core.artifacts import IGNORE_INDEX
from paddle_llm.data.instructions.conversation import Conversation
from paddle_llm.data.samples.encode import EncodedSample, InstructionEncoder
from paddle_llm.data.samples.encoded_samples import EncodedSamples, EncodingReport, encode_all
from paddle_llm.data.samples.packing import pack
from paddle_llm.data.tokenizers.text_codec import TextCodec

PERCENTILES = (50, 90, 95, 99, 100)


@dataclass(frozen=True)
class SampleStatistics:
    """Statistics of samples.

    Attributes:
        samples: Encoded samples.
        report: Counts of what happened to the samples.
        percentiles: Number of tokens of a sample at each of PERCENTILES.
        batch: Number of samples in a batch.
        row_length: Number of tokens of a row.
        padding_batch: Share of padding in batches padded to their longest sample.
        padding_fixed: Share of padding with one sample per row.
        padding_packed: Share of padding in packed rows.
        rows: Number of packed rows.
        tasks: Counts of samples by task.
        languages: Counts of samples by language.
    """

    samples: EncodedSamples
    report: EncodingReport
    percentiles: dict[int, int]
    batch: int
    row_length: int
    padding_batch: float
    padding_fixed: float
    padding_packed: float
    rows: int
    tasks: Counter[str]
    languages: Counter[str]


def compute_statistics(
    conversations: Sequence[Conversation],
    encoder: InstructionEncoder,
    *,
    row_length: int,
    batch: int = 8,
    long_samples: str = "truncate",
    seed: int = 42,
) -> SampleStatistics:
    """Encode conversations and compute their statistics.

    Args:
        conversations: The conversations.
        encoder: Encoder with template and lengths.
        row_length: Number of tokens of a row; increased to the longest sample.
        batch: Number of samples in a batch.
        long_samples: What to do with samples longer than max_length.
        seed: Seed of the shuffling.
    """
    samples = encode_all(conversations, encoder, long_samples=long_samples, skip_untrainable=True)
    lengths = samples.lengths
    packing = pack(lengths, max(row_length, int(lengths.max())), seed)
    return SampleStatistics(
        samples,
        samples.report,
        {p: int(np.percentile(lengths, p, method="inverted_cdf")) for p in PERCENTILES},
        batch,
        packing.row_length,
        padding_of_batches(lengths, batch, seed),
        packing.padding_unpacked,
        packing.padding,
        len(packing.rows),
        Counter(c.task for c in conversations if c.task),
        Counter(c.language for c in conversations if c.language),
    )


def padding_of_batches(lengths: np.ndarray, batch: int, seed: int) -> float:
    """Return the share of padding in shuffled batches, each padded to its longest sample."""
    shuffled = np.random.RandomState(seed % 2**32).permutation(lengths)
    batches = [shuffled[i : i + batch] for i in range(0, len(shuffled), batch)]
    return 1 - int(lengths.sum()) / sum(int(b.max()) * len(b) for b in batches)


def loss_spans(sample: EncodedSample) -> list[tuple[bool, list[int]]]:
    """Return the sample's tokens, including the last target, in runs of (whether they have a loss, ids).

    A target that differs from the next token (an end that is trained although the conversation continues) is a separate
    run.
    """
    tokens = [*sample.input_ids.tolist(), int(sample.labels[-1])]
    runs: list[tuple[bool, list[int]]] = [(False, [tokens[0]])]
    for token, label in zip(tokens[1:], sample.labels.tolist(), strict=True):
        has_loss = label == token
        if label not in (IGNORE_INDEX, token):
            runs.append((True, [label]))
        if token == IGNORE_INDEX:
            continue
        if runs[-1][0] == has_loss:
            runs[-1][1].append(token)
        else:
            runs.append((has_loss, [token]))
    return runs


def mark_loss(sample: EncodedSample, codec: TextCodec, before: str = "[[", after: str = "]]") -> str:
    """Return a sample as text, with `before` and `after` around text with a loss; special tokens by name."""
    parts = []
    for has_loss, ids in loss_spans(sample):
        text = codec.show(ids)
        parts.append(f"{before}{text}{after}" if has_loss else text)
    return "".join(parts)
