"""Checks of an open corpus that read more than file sizes: the whole index, the largest id, the tokenizer.

They take time linear in the size of the corpus, unless a meta file or the cached result of an earlier check has the
answer. One rank of a job performs them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from paddle_llm.core.atomic_output import write_atomically
from paddle_llm.core.errors import UserError
from paddle_llm.data.corpus.cache_key import CACHE_HINT, data_key
from paddle_llm.data.corpus.indexed import Corpus

_SCAN_TOKENS = 16 << 20
_CHECK_ROWS = 4 << 20
# A smaller corpus is read in a tenth of a second; its cache file would be clutter, or fail in a read-only folder.
_CACHE_ABOVE_TOKENS = 64 << 20


def verify_index(corpus: Corpus) -> None:
    """Read the whole index and check that sequences are contiguous and documents ascend. Linear in the documents.

    Raises:
        UserError: If the index is corrupt; the message gives the first wrong entry.
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
                f"{int(ends[at] - sizes[at])}, but the index has {int(pointers[at])}. Build the corpus again."
            )
        expected = int(ends[-1])
    doc_idx = np.asarray(corpus.doc_idx)
    falling = np.flatnonzero(np.diff(doc_idx) < 0)
    if doc_idx[0] != 0 or len(falling):
        at = int(falling[0]) if len(falling) else 0
        raise UserError(f"{corpus.index_path}: corrupt: document {at} starts after it ends. Build the corpus again.")


def largest_token(corpus: Corpus, cache_dir: Path | None = None) -> int:
    """Return the largest id in a corpus, from its meta file or by reading all tokens.

    Args:
        corpus: An open corpus.
        cache_dir: Folder that stores the result for a large corpus, so that it is read once.

    Raises:
        UserError: If an id is negative.
    """
    if "max_token_id" in corpus.meta:
        return int(corpus.meta["max_token_id"])
    cached = None
    if cache_dir is not None and corpus.n_tokens > _CACHE_ABOVE_TOKENS:
        stamp = corpus.data_path.stat().st_mtime_ns
        cached = cache_dir / f"largest-token-{data_key(corpus.data_path)}-{stamp}.txt"
        if cached.is_file():
            return int(cached.read_text())
    lowest, highest = 0, 0
    for first in range(0, corpus.n_tokens, _SCAN_TOKENS):
        block = corpus.tokens[first : first + _SCAN_TOKENS]
        lowest, highest = min(lowest, int(block.min())), max(highest, int(block.max()))
    if lowest < 0:
        raise UserError(f"{corpus.data_path}: negative token id: {lowest}. Build the corpus again.")
    if cached is not None:
        write_atomically(cached, str(highest).encode(), CACHE_HINT)
    return highest


def check_corpus(
    corpus: Corpus, *, vocab_size: int, eos_id: int | None, fingerprint: str | None, cache_dir: Path | None = None
) -> None:
    """Compare a corpus with the model and tokenizer that will read it.

    Args:
        corpus: An open corpus.
        vocab_size: Rows of the model's embedding.
        eos_id: EOS id of the tokenizer; None skips that comparison.
        fingerprint: Fingerprint of the tokenizer in use (`data.tokenizer.fingerprint`); None if there is no tokenizer.
        cache_dir: Folder for the largest id of a large corpus.

    Raises:
        UserError: If they differ; the message gives both values.
    """
    recorded = corpus.meta.get("tokenizer_fingerprint")
    if fingerprint is not None and recorded is not None and fingerprint != recorded:
        raise UserError(
            f"corpus {corpus.prefix}: built with another tokenizer: its fingerprint is {recorded} (vocabulary "
            f"{corpus.meta.get('vocab_size')}), that of the given tokenizer is {fingerprint}. Set --tokenizer_name_or_path "
            "to the tokenizer of the corpus, or build the corpus again with this one."
        )
    highest = largest_token(corpus, cache_dir)
    if highest >= vocab_size:
        raise UserError(
            f"corpus {corpus.prefix}: token id {highest} is outside the model's vocabulary of {vocab_size} (ids 0 to "
            f"{vocab_size - 1}). Build the corpus with the model's own tokenizer, or use a config.json with a larger vocab_size."
        )
    recorded_eos = corpus.meta.get("eos_id")
    if eos_id is not None and recorded_eos is not None and eos_id != recorded_eos:
        raise UserError(
            f"corpus {corpus.prefix}: documents end with id {recorded_eos}, but the tokenizer's EOS is {eos_id}. "
            "Build the corpus again with this tokenizer."
        )
