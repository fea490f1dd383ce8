"""Computes statistics of a corpus and checks its index against its data (`paddle-llm data inspect`)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import numpy as np

from paddle_llm.core.errors import UserError
from paddle_llm.data.corpus.checks import verify_index
from paddle_llm.data.corpus.indexed import Corpus, open_corpus
from paddle_llm.data.tokenizer import fingerprint

_SCAN_TOKENS = 16 << 20
_SCAN_DOCUMENTS = 1 << 20
_NO_ID = -1


@dataclass
class Inspection:
    """Statistics of a corpus.

    Attributes:
        n_documents: Number of documents.
        n_tokens: Number of tokens.
        dtype: Type of the stored ids.
        shortest: Number of tokens of the shortest document.
        longest: Number of tokens of the longest document.
        histogram: (shortest, longest, documents) for each power of two of document lengths.
        max_token_id: Largest id.
        not_ended_by_eos: Number of documents that do not end with EOS; None if the EOS id is not recorded.
        problems: Contradictions between index, data and metadata; empty for an intact corpus.
    """

    n_documents: int
    n_tokens: int
    dtype: str
    shortest: int
    longest: int
    histogram: list[tuple[int, int, int]]
    max_token_id: int
    not_ended_by_eos: int | None
    problems: list[str] = field(default_factory=list)


def inspect_corpus(prefix: str, tokenizer: str | None = None) -> tuple[Corpus, Inspection]:
    """Read a whole corpus once and return it with its statistics.

    Args:
        prefix: Prefix of the corpus.
        tokenizer: Tokenizer folder, whose fingerprint is compared with the recorded one.

    Raises:
        UserError: If the corpus is missing, empty or truncated, or its index is corrupt.
    """
    corpus = open_corpus(prefix)
    verify_index(corpus)
    counts, shortest, longest, not_ended = _lengths(corpus)
    histogram = [(max(1 << (b - 1), 1) if b else 0, (1 << b) - 1, n) for b, n in enumerate(counts) if n]
    max_id, digest = _scan(corpus)
    found = Inspection(
        corpus.n_documents, corpus.n_tokens, corpus.tokens.dtype.name, shortest, longest, histogram, max_id, not_ended
    )
    found.problems = _problems(corpus, found, digest, tokenizer)
    return corpus, found


def _lengths(corpus: Corpus) -> tuple[list[int], int, int, int | None]:
    """Count documents by the bit length of their size; also return the shortest, the longest and those without EOS."""
    eos = corpus.meta.get("eos_id")
    counts = np.zeros(65, dtype=np.int64)
    shortest, longest, not_ended = corpus.n_tokens, 0, 0
    for first in range(0, corpus.n_documents, _SCAN_DOCUMENTS):
        stop = min(first + _SCAN_DOCUMENTS, corpus.n_documents)
        lengths = corpus.doc_lengths(first, stop)
        bits = np.frexp(lengths.astype(np.float64))[1]  # 0 for 0, else floor(log2) + 1
        counts += np.bincount(bits, minlength=65)[:65]
        shortest, longest = min(shortest, int(lengths.min())), max(longest, int(lengths.max()))
        if eos is not None:
            lasts = corpus.doc_start(first) + np.cumsum(lengths) - 1
            not_ended += int((np.asarray(corpus.tokens[lasts[lengths > 0]]) != eos).sum()) + int((lengths == 0).sum())
    return [int(c) for c in counts], shortest, longest, None if eos is None else not_ended


def _scan(corpus: Corpus) -> tuple[int, str]:
    """Return the largest id and the hash of all ids."""
    highest, digest = _NO_ID, hashlib.sha256()
    for first in range(0, corpus.n_tokens, _SCAN_TOKENS):
        block = np.ascontiguousarray(corpus.tokens[first : first + _SCAN_TOKENS])
        highest = max(highest, int(block.max()))
        digest.update(block.data)
    return highest, digest.hexdigest()


def _problems(corpus: Corpus, found: Inspection, digest: str, tokenizer: str | None) -> list[str]:
    meta = corpus.meta
    problems = []
    for key, value in (
        ("n_documents", found.n_documents),
        ("n_tokens", found.n_tokens),
        ("max_token_id", found.max_token_id),
    ):
        if key in meta and meta[key] != value:
            problems.append(f"{key} is {value}, but {corpus.prefix}.meta.json records {meta[key]}")
    if "data_sha256" in meta and meta["data_sha256"] != digest:
        problems.append(f"{corpus.data_path} has changed since it was built (sha256 {digest[:16]}...)")
    if "vocab_size" in meta and found.max_token_id >= meta["vocab_size"]:
        problems.append(f"token id {found.max_token_id} is outside the vocabulary of {meta['vocab_size']}")
    if found.not_ended_by_eos:
        problems.append(f"{found.not_ended_by_eos} documents do not end with EOS (id {meta['eos_id']})")
    if (
        tokenizer
        and "tokenizer_fingerprint" in meta
        and (given := fingerprint(tokenizer)) != meta["tokenizer_fingerprint"]
    ):
        problems.append(f"it was built with tokenizer {meta['tokenizer_fingerprint']}, but {tokenizer} is {given}")
    return problems


def raise_problems(prefix: str, found: Inspection) -> None:
    """Raise an error if a corpus has problems.

    Raises:
        UserError: If `found` lists problems.
    """
    if found.problems:
        raise UserError(f"corpus {prefix}: damaged: {'; '.join(found.problems)}. Copy or build the corpus again.")
