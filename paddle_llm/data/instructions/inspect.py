"""`paddle-llm data inspect --finetune`: what fine-tuning would see of a file: samples as text with the learnt tokens marked,
how long they are, how much of a batch is padding with and without packing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from paddle_llm.core.artifacts import IGNORE_INDEX
from paddle_llm.data.instructions.formats import Conversation
from paddle_llm.data.samples.encode import EncodedSample, InstructionEncoder
from paddle_llm.data.samples.encoded_samples import EncodedSamples, EncodingReport, encode_all
from paddle_llm.data.samples.packing import pack
from paddle_llm.data.tokenizers.text_codec import TextCodec

PERCENTILES = (50, 90, 95, 99, 100)


@dataclass(frozen=True)
class FinetuneInspection:
    """report: counts; percentiles: tokens of a sample at PERCENTILES; padding_batch: share of padding in batches of `batch` padded to
    their longest; padding_fixed, padding_packed: in rows of row_length, one sample each and packed; tasks, languages: samples."""

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


def inspect_conversations(
    conversations: Sequence[Conversation],
    encoder: InstructionEncoder,
    *,
    row_length: int,
    batch: int = 8,
    long_samples: str = "truncate",
    seed: int = 42,
) -> FinetuneInspection:
    """Encode all and count."""
    samples = encode_all(conversations, encoder, long_samples=long_samples, drop_unlearnable=True)
    lengths = samples.lengths
    packing = pack(lengths, max(row_length, int(lengths.max())), seed)
    return FinetuneInspection(
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
    """Share of padding in shuffled batches, each padded to its longest."""
    shuffled = np.random.RandomState(seed % 2**32).permutation(lengths)
    batches = [shuffled[i : i + batch] for i in range(0, len(shuffled), batch)]
    return 1 - int(lengths.sum()) / sum(int(b.max()) * len(b) for b in batches)


def spans(sample: EncodedSample) -> list[tuple[bool, list[int]]]:
    """The sample's tokens, the last target with them, in runs of (bears loss, ids). A target that is not the next token (an end that
    is learnt where the conversation goes on) is a run of its own."""
    tokens = [*sample.input_ids.tolist(), int(sample.labels[-1])]
    runs: list[tuple[bool, list[int]]] = [(False, [tokens[0]])]
    for token, label in zip(tokens[1:], sample.labels.tolist(), strict=True):
        bears = label == token
        if label not in (IGNORE_INDEX, token):
            runs.append((True, [label]))
        if token == IGNORE_INDEX:
            continue
        if runs[-1][0] == bears:
            runs[-1][1].append(token)
        else:
            runs.append((bears, [token]))
    return runs


def marked(sample: EncodedSample, codec: TextCodec, before: str = "[[", after: str = "]]") -> str:
    """The sample as text, what bears loss between `before` and `after`; special tokens by name."""
    parts = []
    for bears, ids in spans(sample):
        text = codec.show(ids)
        parts.append(f"{before}{text}{after}" if bears else text)
    return "".join(parts)
