"""Opens a corpus of token ids and refuses a broken one: .bin/.idx in the mmap format of Megatron and PaddleNLP, and the
older _ids.npy/_idx.npz pair. Nothing here imports paddle.

A document is a run of tokens; `pointers` and `doc_idx` are the arrays of the .idx file (see `data.mmap_format`).
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from paddle_llm.config.errors import UserError
from paddle_llm.data.mmap_format import HEADER_BYTES, read_header

_SCAN_TOKENS = 16 << 20
_HASH_BYTES = 4 << 20
_CHECK_ROWS = 4 << 20


@dataclass
class Corpus:
    """An open corpus. Its arrays are memory maps: opening costs the same for a thousand documents and a billion.

    Attributes:
        prefix: the path without suffix, as the user gave it.
        tokens: [n_tokens] memory map of uint16 or int32 ids.
        data_path, index_path: the two files.
        meta: what `data build` recorded in PREFIX.meta.json; empty for a corpus made by another tool.
    """

    prefix: str
    tokens: np.ndarray
    data_path: Path
    index_path: Path
    sizes: np.ndarray
    pointers: np.ndarray  # of each sequence, in units of `pointer_unit` per token
    pointer_unit: int
    doc_idx: np.ndarray
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def n_documents(self) -> int:
        return len(self.doc_idx) - 1

    @property
    def n_tokens(self) -> int:
        return len(self.tokens)

    def doc_start(self, document: int) -> int:
        """The first token of a document; `doc_start(n_documents)` is the number of tokens."""
        sequence = int(self.doc_idx[document])
        if sequence == len(self.sizes):
            return self.n_tokens
        return int(self.pointers[sequence]) // self.pointer_unit

    def doc_lengths(self, first: int, stop: int) -> np.ndarray:
        """Tokens in each of the documents [first, stop): int64 [stop - first]."""
        sequences = np.asarray(self.doc_idx[first : stop + 1])
        inner = np.minimum(sequences, max(len(self.sizes) - 1, 0))
        starts = np.asarray(self.pointers)[inner] // self.pointer_unit
        starts[sequences == len(self.sizes)] = self.n_tokens
        return np.diff(starts)

    def document(self, document: int) -> np.ndarray:
        """The ids of one document, int64 [length] (a copy: it outlives the corpus)."""
        return np.asarray(self.tokens[self.doc_start(document) : self.doc_start(document + 1)], dtype=np.int64)

    def content_key(self) -> str:
        """Changes whenever the order of samples would: a hash of the whole index and the size of the data."""
        digest = hashlib.sha256(str(self.data_path.stat().st_size).encode())
        with open(self.index_path, "rb") as stream:
            while block := stream.read(_HASH_BYTES):
                digest.update(block)
        return digest.hexdigest()[:20]


def clean_prefix(path: str) -> str:
    """The prefix behind what people type: `p`, `p.bin`, `p.idx`, `p_ids.npy`, `p_idx.npz` all mean `p`."""
    for suffix in (".bin", ".idx", "_ids.npy", "_idx.npz"):
        if path.endswith(suffix) and os.path.isfile(path):
            return path[: -len(suffix)]
    return path


def corpus_exists(prefix: str) -> bool:
    """Whether a finished corpus of either format lies at the prefix."""
    return os.path.isfile(prefix + ".idx") or os.path.isfile(prefix + "_idx.npz")


def open_corpus(prefix: str) -> Corpus:
    """Open a corpus and compare its files' sizes with its index; constant time.

    Raises:
        UserError: missing, empty, truncated or unreadable, with the file and the figures.
    """
    prefix = clean_prefix(prefix)
    if os.path.isfile(prefix + ".idx"):
        corpus = _open_mmap(prefix)
    elif os.path.isfile(prefix + "_idx.npz"):
        corpus = _open_npy_pair(prefix)
    else:
        raise UserError(_missing(prefix))
    if corpus.n_documents < 1 or corpus.n_tokens < 1:
        raise UserError(
            f"corpus {prefix}: empty ({max(corpus.n_documents, 0)} documents, {corpus.n_tokens} tokens). "
            "Build it again from input that holds text."
        )
    if int(corpus.doc_idx[-1]) != len(corpus.sizes):
        raise UserError(
            f"{corpus.index_path}: corrupt: its documents end at sequence {int(corpus.doc_idx[-1])} of "
            f"{len(corpus.sizes)}. Build the corpus again."
        )
    corpus.meta = _read_meta(corpus)
    return corpus


def _missing(prefix: str) -> str:
    build = f"Build one with `paddle-llm data build --input FILES --tokenizer DIR --output_prefix {prefix}`."
    if os.path.isfile(prefix + ".bin.building"):
        return f"corpus {prefix}: its build is not finished (or was killed): there is no {prefix}.idx. {build}"
    if os.path.isfile(prefix + ".bin") or os.path.isfile(prefix + "_ids.npy"):
        return (
            f"corpus {prefix}: the tokens are there, the index ({prefix}.idx or {prefix}_idx.npz) is missing. {build}"
        )
    return f"no corpus at {prefix}: there is no {prefix}.idx (nor the older {prefix}_idx.npz). {build}"


def _open_mmap(prefix: str) -> Corpus:
    index_path, data_path = Path(prefix + ".idx"), Path(prefix + ".bin")
    header = read_header(index_path)
    expected = header.index_bytes
    if (actual := index_path.stat().st_size) != expected:
        raise UserError(
            f"{index_path}: corrupt: its header promises {header.n_sequences} sequences and {header.n_doc_idx - 1} "
            f"documents, {expected} bytes in all; the file has {actual}. Copy or build the corpus again."
        )
    if not data_path.is_file():
        raise UserError(
            f"corpus {prefix}: the index is there, the tokens ({data_path}) are missing. Copy them beside it."
        )
    sizes = _map(index_path, np.int32, HEADER_BYTES, header.n_sequences)
    pointers = _map(index_path, np.int64, HEADER_BYTES + 4 * header.n_sequences, header.n_sequences)
    doc_idx = _map(index_path, np.int64, HEADER_BYTES + 12 * header.n_sequences, header.n_doc_idx)
    itemsize = header.dtype.itemsize
    wanted = int(pointers[-1]) + int(sizes[-1]) * itemsize if header.n_sequences else 0
    if (actual := data_path.stat().st_size) != wanted:
        what = "truncated" if actual < wanted else "longer than its index says"
        raise UserError(
            f"{data_path}: {what}: {index_path.name} describes {wanted} bytes ({wanted // itemsize} tokens), the file has "
            f"{actual} ({actual // itemsize} tokens). Copy or build the corpus again."
        )
    tokens = _map(data_path, header.dtype, 0, wanted // itemsize)
    return Corpus(prefix, tokens, data_path, index_path, sizes, pointers, itemsize, doc_idx)


def _map(path: Path, dtype: Any, offset: int, count: int) -> np.ndarray:
    if count == 0:  # an empty file cannot be mapped
        return np.empty(0, dtype=dtype)
    return np.memmap(path, dtype=dtype, mode="r", offset=offset, shape=(count,))


def _open_npy_pair(prefix: str) -> Corpus:
    index_path, data_path = Path(prefix + "_idx.npz"), Path(prefix + "_ids.npy")
    if not data_path.is_file():
        raise UserError(
            f"corpus {prefix}: the index is there, the tokens ({data_path}) are missing. Copy them beside it."
        )
    try:
        with np.load(index_path) as arrays:
            sizes, doc_idx = arrays["lens"], arrays["docs"].astype(np.int64)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{index_path}: not an index with `lens` and `docs`: {error}. Build the corpus again."
        ) from error
    try:
        tokens = np.load(data_path, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise UserError(
            f"{data_path}: truncated or not a .npy file: {error}. Copy or build the corpus again."
        ) from error
    ends = np.cumsum(sizes, dtype=np.int64)
    if len(sizes) and int(ends[-1]) != len(tokens):
        raise UserError(
            f"{data_path}: {len(tokens)} tokens, but {index_path.name} describes {int(ends[-1])}. Build the corpus again."
        )
    return Corpus(prefix, tokens, data_path, index_path, sizes, ends - sizes, 1, doc_idx)


def data_key(path: Path) -> str:
    """A cheap key of a file's content: its size and 64 blocks spread over it, hashed."""
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with open(path, "rb") as stream:
        for i in range(64):
            stream.seek(max(size - 4096, 0) * i // 63)
            digest.update(stream.read(4096))
    return digest.hexdigest()[:20]


def _read_meta(corpus: Corpus) -> dict[str, Any]:
    path = Path(corpus.prefix + ".meta.json")
    if not path.is_file():
        return {}
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
        recorded = meta["data_key"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: unreadable ({error}). Delete it, or build the corpus again.") from error
    if recorded != data_key(corpus.data_path):
        raise UserError(
            f"{path}: describes another corpus than {corpus.data_path} ({meta.get('n_tokens')} tokens recorded, "
            f"{corpus.n_tokens} there). If another tool rebuilt the corpus, delete the .meta.json; else build it again."
        )
    return meta


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
    """The largest id in the corpus: from its meta file, else by reading it once (remembered in `cache_dir`).

    Raises:
        UserError: an id below zero.
    """
    if "max_token_id" in corpus.meta:
        return int(corpus.meta["max_token_id"])
    remembered = None
    if cache_dir is not None:
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
        write_atomically(remembered, str(highest).encode())
    return highest


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all.

    Raises:
        UserError: the folder cannot be written.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}.") from error


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
