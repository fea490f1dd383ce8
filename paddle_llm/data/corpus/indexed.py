"""Opens a corpus of token ids and checks that its files belong together. Does not import Paddle.

Three formats are read: .bin/.idx in the mmap format of Megatron and PaddleNLP, .bin/.idx in PaddleNLP's `lazy` format,
and the older pair of _ids.npy and _idx.npz. A document is a range of tokens; `pointers` and `doc_idx` are the arrays
of the .idx file (see `mmap_format`).
"""

from __future__ import annotations

import hashlib
import os
import struct
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from paddle_llm.core.errors import UserError
from paddle_llm.core.json_files import parse_json
from paddle_llm.data.corpus.cache_key import data_key
from paddle_llm.data.corpus.mmap_format import DTYPES, HEADER_BYTES, LAZY_MAGIC, read_header

if TYPE_CHECKING:
    from numpy.typing import DTypeLike

_HASH_BYTES = 4 << 20


@dataclass
class Corpus:
    """An open corpus. Its arrays are memory maps, so opening it takes the same time for any number of documents.

    Attributes:
        prefix: Path without suffix, as the user gave it.
        tokens: Memory map [n_tokens] of uint16 or int32 ids.
        data_path: File of the tokens.
        index_path: File of the index.
        sizes: Number of tokens of each sequence [n_sequences].
        pointers: Offset of each sequence [n_sequences], in units of `pointer_unit` per token.
        pointer_unit: Units per token in `pointers`: the item size, or 1.
        doc_idx: First sequence of each document [n_documents + 1]; the last entry is the number of sequences.
        meta: Content of PREFIX.meta.json, written by `data build`; empty for a corpus of another tool.
    """

    prefix: str
    tokens: np.ndarray
    data_path: Path
    index_path: Path
    sizes: np.ndarray
    pointers: np.ndarray
    pointer_unit: int
    doc_idx: np.ndarray
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def n_documents(self) -> int:
        """Number of documents."""
        return len(self.doc_idx) - 1

    @property
    def n_tokens(self) -> int:
        """Number of tokens."""
        return len(self.tokens)

    def doc_start(self, document: int) -> int:
        """Return the position of a document's first token; `doc_start(n_documents)` is the number of tokens."""
        sequence = int(self.doc_idx[document])
        if sequence == len(self.sizes):
            return self.n_tokens
        return int(self.pointers[sequence]) // self.pointer_unit

    def doc_lengths(self, first: int, stop: int) -> np.ndarray:
        """Return the number of tokens of each of the documents [first, stop): int64 [stop - first]."""
        sequences = np.asarray(self.doc_idx[first : stop + 1])
        inner = np.minimum(sequences, max(len(self.sizes) - 1, 0))
        starts = np.asarray(self.pointers)[inner] // self.pointer_unit
        starts[sequences == len(self.sizes)] = self.n_tokens
        return np.diff(starts)

    def document(self, document: int) -> np.ndarray:
        """Return the ids of one document, int64 [length], as a copy that outlives the corpus."""
        return np.asarray(self.tokens[self.doc_start(document) : self.doc_start(document + 1)], dtype=np.int64)

    def content_key(self) -> str:
        """Return a hash of the index and the size of the data, which changes whenever the order of samples would."""
        digest = hashlib.sha256(str(self.data_path.stat().st_size).encode())
        with open(self.index_path, "rb") as stream:
            while block := stream.read(_HASH_BYTES):
                digest.update(block)
        return digest.hexdigest()[:20]


def clean_prefix(path: str) -> str:
    """Return the prefix meant by a path: `p`, `p.bin`, `p.idx`, `p_ids.npy` and `p_idx.npz` all mean `p`."""
    for suffix in (".bin", ".idx", "_ids.npy", "_idx.npz"):
        if path.endswith(suffix) and os.path.isfile(path):
            return path[: -len(suffix)]
    return path


def corpus_exists(prefix: str) -> bool:
    """Return whether the prefix has a complete corpus of any format."""
    return os.path.isfile(prefix + ".idx") or os.path.isfile(prefix + "_idx.npz")


def open_corpus(prefix: str) -> Corpus:
    """Open a corpus and compare the sizes of its files with its index, in constant time.

    Raises:
        UserError: If the corpus is missing, empty, truncated or unreadable; the message gives the file and the sizes.
    """
    prefix = clean_prefix(prefix)
    if os.path.isfile(prefix + ".idx"):
        with open(prefix + ".idx", "rb") as stream:
            lazy = stream.read(len(LAZY_MAGIC)) == LAZY_MAGIC
        corpus = _open_lazy(prefix) if lazy else _open_mmap(prefix)
    elif os.path.isfile(prefix + "_idx.npz"):
        corpus = _open_npy_pair(prefix)
    else:
        raise UserError(_missing(prefix))
    if corpus.n_documents < 1 or corpus.n_tokens < 1:
        raise UserError(
            f"corpus {prefix}: empty: {max(corpus.n_documents, 0)} documents, {corpus.n_tokens} tokens. "
            "Build it again from input with text."
        )
    if int(corpus.doc_idx[0]) != 0:
        raise UserError(
            f"{corpus.index_path}: corrupt: its first document begins at sequence {int(corpus.doc_idx[0])}, not 0. "
            "Build the corpus again."
        )
    if int(corpus.doc_idx[-1]) != len(corpus.sizes):
        raise UserError(
            f"{corpus.index_path}: corrupt: its last document ends at sequence {int(corpus.doc_idx[-1])} of "
            f"{len(corpus.sizes)}. Build the corpus again."
        )
    corpus.meta = _read_meta(corpus)
    return corpus


def _missing(prefix: str) -> str:
    build = f"Build one with `paddle-llm data build --input FILES --tokenizer DIR --output_prefix {prefix}`."
    if os.path.isfile(prefix + ".bin.building"):
        return f"corpus {prefix}: incomplete: its build is running or was killed; {prefix}.idx does not exist. {build}"
    if os.path.isfile(prefix + ".bin") or os.path.isfile(prefix + "_ids.npy"):
        return f"corpus {prefix}: incomplete: the tokens exist but no index ({prefix}.idx or {prefix}_idx.npz). {build}"
    return f"corpus {prefix}: not found: neither {prefix}.idx nor the older {prefix}_idx.npz exists. {build}"


def _open_mmap(prefix: str) -> Corpus:
    index_path, data_path = Path(prefix + ".idx"), Path(prefix + ".bin")
    header = read_header(index_path)
    expected = header.index_bytes
    actual = index_path.stat().st_size
    if header.n_sequences and actual == expected + header.n_sequences:
        raise UserError(
            f"{index_path}: it has sequence modes, which Megatron writes for multimodal data and which are not supported. "
            "Build the corpus from text."
        )
    if actual != expected:
        raise UserError(
            f"{index_path}: corrupt: its header describes {header.n_sequences} sequences and {header.n_doc_idx - 1} "
            f"documents, {expected} bytes in total, but the file has {actual}. Copy or build the corpus again."
        )
    _require_data(prefix, data_path)
    sizes = _map(index_path, np.int32, HEADER_BYTES, header.n_sequences)
    pointers = _map(index_path, np.int64, HEADER_BYTES + 4 * header.n_sequences, header.n_sequences)
    doc_idx = _map(index_path, np.int64, HEADER_BYTES + 12 * header.n_sequences, header.n_doc_idx)
    itemsize = header.dtype.itemsize
    needed = int(pointers[-1]) + int(sizes[-1]) * itemsize if header.n_sequences else 0
    _require_size(data_path, needed, itemsize, index_path)
    tokens = _map(data_path, header.dtype, 0, needed // itemsize)
    return Corpus(prefix, tokens, data_path, index_path, sizes, pointers, itemsize, doc_idx)


def _open_lazy(prefix: str) -> Corpus:
    index_path, data_path = Path(prefix + ".idx"), Path(prefix + ".bin")
    head = struct.Struct("<8sQQQQQQ")
    raw = index_path.read_bytes()
    try:
        _, version, code, itemsize, n_items, n_sizes, n_doc_idx = head.unpack_from(raw)
        # The header is followed by n_items + 1 offsets of dimensions, as many of data (in tokens), sizes and documents.
        offsets_at = head.size + 8 * (n_items + 1)
        pointers = np.frombuffer(raw, "<i8", n_items, offsets_at)
        sizes = np.frombuffer(raw, "<i4", n_sizes, offsets_at + 8 * (n_items + 1))
        doc_idx = np.frombuffer(raw, "<i8", n_doc_idx, offsets_at + 8 * (n_items + 1) + 4 * n_sizes)
        if version != 1 or code not in DTYPES or n_sizes != n_items:
            raise ValueError(f"version {version}, dtype code {code}, {n_sizes} sizes of {n_items} sequences")
    except (struct.error, ValueError) as error:
        raise UserError(f"{index_path}: corrupt: {error}. Build the corpus again.") from error
    _require_data(prefix, data_path)
    needed = int(sizes.sum(dtype=np.int64)) * itemsize
    _require_size(data_path, needed, itemsize, index_path)
    tokens = _map(data_path, DTYPES[code], 0, needed // itemsize)
    return Corpus(prefix, tokens, data_path, index_path, sizes, pointers, 1, doc_idx)


def _require_data(prefix: str, data_path: Path) -> None:
    if not data_path.is_file():
        raise UserError(
            f"corpus {prefix}: incomplete: the index exists but not the tokens ({data_path}). Copy them to this folder."
        )


def _require_size(data_path: Path, needed: int, itemsize: int, index_path: Path) -> None:
    if (actual := data_path.stat().st_size) != needed:
        what = "truncated" if actual < needed else "longer than its index"
        raise UserError(
            f"{data_path}: {what}: {index_path.name} describes {needed} bytes ({needed // itemsize} tokens), the file has "
            f"{actual} ({actual // itemsize} tokens). Copy or build the corpus again."
        )


def _map(path: Path, dtype: DTypeLike, offset: int, count: int) -> np.ndarray:
    if count == 0:  # an empty file cannot be mapped
        return np.empty(0, dtype=dtype)
    return np.memmap(path, dtype=dtype, mode="r", offset=offset, shape=(count,))


def _open_npy_pair(prefix: str) -> Corpus:
    index_path, data_path = Path(prefix + "_idx.npz"), Path(prefix + "_ids.npy")
    _require_data(prefix, data_path)
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
            f"{data_path}: size differs from its index: {len(tokens)} tokens, but {index_path.name} describes "
            f"{int(ends[-1])}. Build the corpus again."
        )
    return Corpus(prefix, tokens, data_path, index_path, sizes, ends - sizes, 1, doc_idx)


def _read_meta(corpus: Corpus) -> dict[str, Any]:
    path = Path(corpus.prefix + ".meta.json")
    if not path.is_file():
        return {}
    try:
        meta = parse_json(path.read_text(encoding="utf-8"))
        recorded = meta["data_key"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: unreadable: {error}. Delete it, or build the corpus again.") from error
    if recorded != data_key(corpus.data_path):
        raise UserError(
            f"{path}: describes another corpus than {corpus.data_path}: {meta.get('n_tokens')} tokens are recorded, the "
            f"file has {corpus.n_tokens}. Delete the .meta.json if another tool rebuilt the corpus; else build it again."
        )
    return meta
