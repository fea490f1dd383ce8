"""The one global order of samples of one corpus and split, deterministic in the seed and the epoch, free of paddle.

Epoch by epoch: the split's documents are shuffled, laid end to end, cut into samples of seq_length + 1 tokens that overlap
by one (sample k of the epoch's text uses tokens [k*S, k*S + S], Megatron's convention), then the samples are shuffled.
A position in the endless sequence of epochs names one sample; nothing else (layout, workers, steps to run) enters.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from paddle_llm.core.atomic_output import write_atomically
from paddle_llm.data.corpus.cache_key import CACHE_HINT
from paddle_llm.data.corpus.indexed import Corpus

# Smaller orders are made again faster than they are read from disk; larger ones are cached there.
CACHE_ABOVE_ENTRIES = 1 << 20
_DOCUMENTS, _SAMPLES = 0, 1


@dataclass(frozen=True)
class EpochOrder:
    """documents: [N] the split's documents in the order of this epoch; ends: [N] tokens up to and with each of them;
    samples: [M] which cut of that text stands at each position. All int64."""

    documents: np.ndarray
    ends: np.ndarray
    samples: np.ndarray


@dataclass(frozen=True)
class Origin:
    """Where a sample came from. `documents` are numbers of the corpus, first to last that contribute a token."""

    prefix: str
    epoch: int
    sample: int
    documents: tuple[int, ...]

    def __str__(self) -> str:
        first, last = self.documents[0], self.documents[-1]
        which = (
            f"document {first}" if len(self.documents) == 1 else f"{len(self.documents)} documents, {first} to {last}"
        )
        return f"{self.prefix} epoch {self.epoch} sample {self.sample} ({which})"


def compute_epoch(lengths: np.ndarray, first: int, seq_length: int, seed: int, split: int, epoch: int) -> EpochOrder:
    """The order of one epoch.

    Args:
        lengths: [N] tokens of the documents first .. first + N.
    """
    documents = _permutation(len(lengths), seed, split, epoch, _DOCUMENTS)
    ends = np.cumsum(lengths[documents], dtype=np.int64)
    samples = _permutation(max(int(ends[-1]) - 1, 0) // seq_length, seed, split, epoch, _SAMPLES)
    return EpochOrder(documents + first, ends, samples)


def _permutation(count: int, *key: int) -> np.ndarray:
    # RandomState, not Generator: numpy promises that its stream never changes, so a run resumes under another numpy.
    return np.random.RandomState([k & 0xFFFFFFFF for k in key]).permutation(count).astype(np.int64, copy=False)


class SampleOrder:
    """Samples of the documents [first, stop) of a corpus, one endless sequence of epochs.

    Args:
        split: 0 train, 1 valid, 2 test; enters the seed.
        cache_dir: where large orders are kept; large: of more than cache_above entries (CACHE_ABOVE_ENTRIES).
    """

    def __init__(
        self,
        corpus: Corpus,
        first: int,
        stop: int,
        *,
        seq_length: int,
        seed: int,
        split: int,
        cache_dir: Path,
        cache_above: int | None = None,
    ):
        self.corpus, self.first, self.stop = corpus, first, stop
        self.seq_length, self.seed, self.split = seq_length, seed, split
        self.n_tokens = corpus.doc_start(stop) - corpus.doc_start(first) if stop > first else 0
        self.samples_per_epoch = max(self.n_tokens - 1, 0) // seq_length
        self._entries = 2 * (stop - first) + self.samples_per_epoch
        self._cached = self._entries > (CACHE_ABOVE_ENTRIES if cache_above is None else cache_above)
        self.cache_dir = cache_dir
        self._key = ""
        self._epochs: dict[int, EpochOrder] = {}

    def prepare(self, n_epochs: int) -> None:
        """Build what the first n_epochs need on disk; small orders need nothing."""
        if self._cached:
            for epoch in range(n_epochs):
                if self._read(self.cache_path(epoch)) is None:
                    self._write(epoch)

    def epoch(self, epoch: int) -> EpochOrder:
        """The order of one epoch, kept while it is in use."""
        if epoch not in self._epochs:
            order = self._from_disk(epoch) if self._cached else self._compute(epoch)
            while len(self._epochs) > 1:  # a batch at the border of two epochs needs both, never three
                self._epochs.pop(next(iter(self._epochs)))
            self._epochs[epoch] = order
        return self._epochs[epoch]

    def cache_path(self, epoch: int) -> Path:
        """Named after everything that enters the order, the corpus by its content: a rebuilt corpus has another."""
        if not self._key:
            parts = (self.corpus.content_key(), self.first, self.stop, self.seq_length, self.seed, self.split)
            self._key = hashlib.sha256(repr(parts).encode()).hexdigest()[:20]
        return self.cache_dir / f"order-{self._key}-epoch{epoch}.npy"

    def tokens(self, position: int) -> np.ndarray:
        """The seq_length + 1 tokens at a position of the order, int64 [S + 1] (a copy)."""
        out = np.empty(self.seq_length + 1, dtype=np.int64)
        filled = 0
        for start, count, _ in self._pieces(position):
            out[filled : filled + count] = self.corpus.tokens[start : start + count]
            filled += count
        return out

    def origin(self, position: int) -> Origin:
        """Where the sample at a position came from."""
        epoch, slot = divmod(position, self.samples_per_epoch)
        documents = tuple(document for _, _, document in self._pieces(position))
        return Origin(self.corpus.prefix, epoch, int(self.epoch(epoch).samples[slot]), documents)

    def _pieces(self, position: int) -> list[tuple[int, int, int]]:
        """(first token in the corpus, count, document) of each run that makes up a sample."""
        epoch, slot = divmod(position, self.samples_per_epoch)
        order = self.epoch(epoch)
        at = int(order.samples[slot]) * self.seq_length
        wanted = self.seq_length + 1
        row = int(np.searchsorted(order.ends, at, side="right"))
        pieces = []
        while wanted:
            count = min(int(order.ends[row]) - at, wanted)
            if count:
                document = int(order.documents[row])
                end = self.corpus.doc_start(document + 1)
                pieces.append((end - (int(order.ends[row]) - at), count, document))
            at, wanted, row = at + count, wanted - count, row + 1
        return pieces

    def _compute(self, epoch: int) -> EpochOrder:
        lengths = self.corpus.doc_lengths(self.first, self.stop)
        return compute_epoch(lengths, self.first, self.seq_length, self.seed, self.split, epoch)

    def _from_disk(self, epoch: int) -> EpochOrder:
        path = self.cache_path(epoch)
        flat = self._read(path)
        if flat is None:  # another machine's folder, or deleted since: the content is the same whoever writes it
            self._write(epoch)
            flat = np.load(path, mmap_mode="r")
        count = self.stop - self.first
        return EpochOrder(flat[:count], flat[count : 2 * count], flat[2 * count :])

    def _read(self, path: Path) -> np.ndarray | None:
        try:
            flat = np.load(path, mmap_mode="r")
        except (OSError, ValueError, EOFError):
            return None
        return flat if flat.shape == (self._entries,) and flat.dtype == np.int64 else None

    def _write(self, epoch: int) -> None:
        order = self._compute(epoch)
        buffer = io.BytesIO()
        np.save(buffer, np.concatenate([order.documents, order.ends, order.samples]))
        write_atomically(self.cache_path(epoch), buffer.getbuffer(), CACHE_HINT)
