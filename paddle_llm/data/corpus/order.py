"""The global order of samples of one split of a corpus. It depends only on the data, the seed and the epoch.

For each epoch, the documents of the split are shuffled, concatenated and cut into samples of seq_length + 1 tokens that
overlap by one: sample k of the epoch uses tokens [k*S, k*S + S], as in Megatron. Then the samples are shuffled. A
position in the endless sequence of epochs identifies one sample; layout, workers and number of steps have no effect.
Does not import Paddle.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from paddle_llm.core.atomic_output import write_atomically
from paddle_llm.data.corpus.cache_key import CACHE_HINT
from paddle_llm.data.corpus.content_digest import file_digest, records_of
from paddle_llm.data.corpus.indexed import Corpus

# Smaller orders are computed faster than they are read from disk; larger ones are cached.
CACHE_ABOVE_ENTRIES = 1 << 20
_DOCUMENTS, _SAMPLES = 0, 1


@dataclass(frozen=True)
class EpochOrder:
    """Order of one epoch. All arrays are int64.

    Attributes:
        documents: Documents of the split in the order of this epoch [N].
        ends: Cumulative number of tokens up to and including each of them [N].
        samples: Index of the cut at each position [M].
    """

    documents: np.ndarray
    ends: np.ndarray
    samples: np.ndarray


@dataclass(frozen=True)
class Origin:
    """Origin of a sample.

    Attributes:
        prefix: Prefix of the corpus.
        epoch: Number of the epoch, from 0.
        sample: Index of the cut within the epoch.
        documents: Numbers of the documents that contribute tokens, in order.
    """

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
    """Compute the order of one epoch.

    Args:
        lengths: Number of tokens of the documents first .. first + N - 1 [N].
        first: Number of the first document.
        seq_length: S, tokens per sample that the model sees.
        seed: Seed of the data.
        split: Number of the split.
        epoch: Number of the epoch.
    """
    documents = _permutation(len(lengths), seed, split, epoch, _DOCUMENTS)
    ends = np.cumsum(lengths[documents], dtype=np.int64)
    samples = _permutation(max(int(ends[-1]) - 1, 0) // seq_length, seed, split, epoch, _SAMPLES)
    return EpochOrder(documents + first, ends, samples)


def _permutation(count: int, *key: int) -> np.ndarray:
    # numpy guarantees that the stream of RandomState never changes, unlike Generator: runs resume with another numpy.
    return np.random.RandomState([k & 0xFFFFFFFF for k in key]).permutation(count).astype(np.int64, copy=False)


class SampleOrder:
    """Samples of the documents [first, stop) of a corpus, as one endless sequence of epochs.

    Args:
        corpus: An open corpus.
        first: First document.
        stop: Document after the last one.
        seq_length: S, tokens per sample that the model sees.
        seed: Seed of the data.
        split: 0 train, 1 valid, 2 test; part of the seed.
        cache_dir: Folder where large orders are cached.
        cache_above: Number of entries above which an order is large; None: CACHE_ABOVE_ENTRIES.
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
    ) -> None:
        self.corpus, self.first, self.stop = corpus, first, stop
        self.seq_length, self.seed, self.split = seq_length, seed, split
        self.n_tokens = corpus.doc_start(stop) - corpus.doc_start(first) if stop > first else 0
        self.samples_per_epoch = max(self.n_tokens - 1, 0) // seq_length
        self._entries = 2 * (stop - first) + self.samples_per_epoch
        self._cached = self._entries > (CACHE_ABOVE_ENTRIES if cache_above is None else cache_above)
        self.cache_dir = cache_dir
        self._key = ""
        self._epochs: dict[int, EpochOrder] = {}

    def content_digests(self) -> tuple[str, str]:
        """Return the digests of the whole files of tokens and index; see `content_digest`."""
        files, records = (self.corpus.data_path, self.corpus.index_path), records_of(self.corpus.prefix)
        tokens, index = (file_digest(file, records.get(file.suffix), self.cache_dir) for file in files)
        return tokens, index

    def prepare(self, n_epochs: int) -> None:
        """Write the orders of the first n_epochs to disk; small orders are not cached."""
        if self._cached:
            for epoch in range(n_epochs):
                if self._read(self.cache_path(epoch)) is None:
                    self._write(epoch)

    def epoch(self, epoch: int) -> EpochOrder:
        """Return the order of one epoch; the last two that were used are kept."""
        if epoch not in self._epochs:
            order = self._from_disk(epoch) if self._cached else self._compute(epoch)
            while len(self._epochs) > 1:  # a batch at the boundary of two epochs needs both, never three
                self._epochs.pop(next(iter(self._epochs)))
            self._epochs[epoch] = order
        return self._epochs[epoch]

    def cache_path(self, epoch: int) -> Path:
        """Return the cache file of an epoch, named after a hash of everything that determines the order."""
        if not self._key:
            parts = (self.corpus.content_key(), self.first, self.stop, self.seq_length, self.seed, self.split)
            self._key = hashlib.sha256(repr(parts).encode()).hexdigest()[:20]
        return self.cache_dir / f"order-{self._key}-epoch{epoch}.npy"

    def tokens(self, position: int) -> np.ndarray:
        """Return the seq_length + 1 tokens at a position of the order, int64 [S + 1], as a copy."""
        out = np.empty(self.seq_length + 1, dtype=np.int64)
        filled = 0
        for start, count, _ in self._pieces(position):
            out[filled : filled + count] = self.corpus.tokens[start : start + count]
            filled += count
        return out

    def origin(self, position: int) -> Origin:
        """Return the origin of the sample at a position."""
        epoch, slot = divmod(position, self.samples_per_epoch)
        documents = tuple(document for _, _, document in self._pieces(position))
        return Origin(self.corpus.prefix, epoch, int(self.epoch(epoch).samples[slot]), documents)

    def _pieces(self, position: int) -> list[tuple[int, int, int]]:
        """Return (first token in the corpus, count, document) of each range of tokens of a sample."""
        epoch, slot = divmod(position, self.samples_per_epoch)
        order = self.epoch(epoch)
        at = int(order.samples[slot]) * self.seq_length
        remaining = self.seq_length + 1
        row = int(np.searchsorted(order.ends, at, side="right"))
        pieces = []
        while remaining:
            count = min(int(order.ends[row]) - at, remaining)
            if count:
                document = int(order.documents[row])
                end = self.corpus.doc_start(document + 1)
                pieces.append((end - (int(order.ends[row]) - at), count, document))
            at, remaining, row = at + count, remaining - count, row + 1
        return pieces

    def _compute(self, epoch: int) -> EpochOrder:
        lengths = self.corpus.doc_lengths(self.first, self.stop)
        return compute_epoch(lengths, self.first, self.seq_length, self.seed, self.split, epoch)

    def _from_disk(self, epoch: int) -> EpochOrder:
        path = self.cache_path(epoch)
        flat = self._read(path)
        if flat is None:  # another machine's folder, or deleted since; every writer writes the same content
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
