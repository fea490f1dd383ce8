"""Checks of an open corpus that read more than file sizes: the whole index, the largest id, the tokenizer behind it. Linear in
the corpus unless a meta file or a note of an earlier check answers; one rank of a job does them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from paddle_llm.core.atomic_output import write_atomically
from paddle_llm.core.errors import UserError
from paddle_llm.data.corpus.cache_key import CACHE_HINT, data_key
from paddle_llm.data.corpus.indexed import Corpus

_SCAN_TOKENS = 16 << 20
_CHECK_ROWS = 4 << 20
# Reading fewer takes a tenth of a second; a note about them would only litter (or fail in a read-only folder).
_REMEMBER_ABOVE_TOKENS = 64 << 20


def verify_index(corpus: Corpus) -> None:
    """Read the whole index: sequences lie end to end, documents ascend. Linear in the documents; one rank is enough.

    Raises:
        UserError: with the first place that is wrong.
    """
    expected = 0
    for first in range(0, len(corpus.sizes), _CHECK_ROWS):
        sizes = np.asarray(corpus.sizes[first : first + _CHECK_ROWS], dtype=np.int64)
        ends = expected + np.cumsum(sizes)
        pointers = np.asarray(corpus.pointers[first : first + _CHECK_ROWS]) // corpus.pointer_unit
        wrong = np.flatnonzero((pointers != ends - sizes) | (sizes < 0))
        if len(wrong):
            at = int(wrong[0])
            raise UserError(
                f"{corpus.index_path}: corrupt: sequence {first + at} ({int(sizes[at])} tokens) should start at token "
                f"{int(ends[at] - sizes[at])}, the index says {int(pointers[at])}. Build the corpus again."
            )
        expected = int(ends[-1])
    doc_idx = np.asarray(corpus.doc_idx)
    falling = np.flatnonzero(np.diff(doc_idx) < 0)
    if doc_idx[0] != 0 or len(falling):
        at = int(falling[0]) if len(falling) else 0
        raise UserError(f"{corpus.index_path}: corrupt: document {at} starts after it ends. Build the corpus again.")


def largest_token(corpus: Corpus, cache_dir: Path | None = None) -> int:
    """The largest id in the corpus: from its meta file, else by reading it (if it is large, once: it is remembered in `cache_dir`).

    Raises:
        UserError: an id below zero.
    """
    if "max_token_id" in corpus.meta:
        return int(corpus.meta["max_token_id"])
    remembered = None
    if cache_dir is not None and corpus.n_tokens > _REMEMBER_ABOVE_TOKENS:
        stamp = corpus.data_path.stat().st_mtime_ns
        remembered = cache_dir / f"largest-token-{data_key(corpus.data_path)}-{stamp}.txt"
        if remembered.is_file():
            return int(remembered.read_text())
    lowest, highest = 0, 0
    for first in range(0, corpus.n_tokens, _SCAN_TOKENS):
        block = corpus.tokens[first : first + _SCAN_TOKENS]
        lowest, highest = min(lowest, int(block.min())), max(highest, int(block.max()))
    if lowest < 0:
        raise UserError(f"{corpus.data_path}: holds the token id {lowest}. Build the corpus again.")
    if remembered is not None:
        write_atomically(remembered, str(highest).encode(), CACHE_HINT)
    return highest


def check_corpus(
    corpus: Corpus, *, vocab_size: int, eos_id: int | None, fingerprint: str | None, cache_dir: Path | None = None
) -> None:
    """Compare a corpus with the model and tokenizer that will read it.

    Args:
        vocab_size: rows of the model's embedding.
        eos_id: the tokenizer's end of sentence; None skips that comparison.
        fingerprint: of the tokenizer in use (`data.tokenizer.fingerprint`); None when there is no tokenizer.

    Raises:
        UserError: what differs, with the figures.
    """
    recorded = corpus.meta.get("tokenizer_fingerprint")
    if fingerprint is not None and recorded is not None and fingerprint != recorded:
        raise UserError(
            f"corpus {corpus.prefix} was built with another tokenizer: its fingerprint is {recorded} (vocabulary "
            f"{corpus.meta.get('vocab_size')}), the tokenizer given has {fingerprint}. Give --tokenizer_name_or_path the "
            "tokenizer it was built with, or build the corpus again with this one."
        )
    highest = largest_token(corpus, cache_dir)
    if highest >= vocab_size:
        raise UserError(
            f"corpus {corpus.prefix} holds the token id {highest}, the model's vocabulary has {vocab_size} (ids 0 to "
            f"{vocab_size - 1}). Use the model's own tokenizer to build the corpus, or a config.json with a larger vocab_size."
        )
    recorded_eos = corpus.meta.get("eos_id")
    if eos_id is not None and recorded_eos is not None and eos_id != recorded_eos:
        raise UserError(
            f"corpus {corpus.prefix} ends its documents with id {recorded_eos}, the tokenizer in use with {eos_id}. "
            "Build the corpus again with this tokenizer."
        )
