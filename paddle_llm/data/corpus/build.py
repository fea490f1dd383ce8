"""Builds a .bin/.idx corpus from text files (`paddle-llm data build`).

The output has the same bytes for any number of workers. Memory use does not depend on the size of the input. An
interrupted build leaves no file that looks complete.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import xxhash

from paddle_llm.core.counts import counted
from paddle_llm.core.errors import UserError
from paddle_llm.data.corpus.cache_key import data_key
from paddle_llm.data.corpus.content_digest import DIGESTS, file_digest, record, write_records
from paddle_llm.data.corpus.encode import Encoded, open_encoder
from paddle_llm.data.corpus.mmap_format import SizesFile, token_dtype, write_index
from paddle_llm.data.corpus.sources import ReadOptions, Source, find_sources, read_blocks
from paddle_llm.data.corpus.workers import encode_blocks
from paddle_llm.data.tokenizer import fingerprint

_SUFFIXES = (".bin", ".idx", ".meta.json", DIGESTS)
_BUILDING = ".building"
_MAX_NAMED_PROBLEMS = 5


@dataclass
class BuildReport:
    """Counts of a build.

    Attributes:
        n_documents: Number of documents.
        n_tokens: Number of tokens, including the EOS of each document.
        max_token_id: Largest id.
        empty_documents: Number of skipped documents without a token.
        bad_rows: Number of rows without text.
        special_tokens: Number of special tokens whose text occurs in documents; they became token ids.
        problems: Descriptions of the first bad rows, if bad rows are skipped.
    """

    n_documents: int = 0
    n_tokens: int = 0
    max_token_id: int = 0
    empty_documents: int = 0
    bad_rows: int = 0
    special_tokens: int = 0
    problems: list[str] = field(default_factory=list)

    def add(self, encoded: Encoded) -> None:
        """Add the counts of one block."""
        self.n_documents += len(encoded.sizes)
        self.n_tokens += len(encoded.ids)
        self.max_token_id = max(self.max_token_id, encoded.max_id)
        self.empty_documents += encoded.empty
        self.bad_rows += len(encoded.problems)
        self.special_tokens += encoded.special_tokens
        self.problems += encoded.problems[: _MAX_NAMED_PROBLEMS - len(self.problems)]


def build_corpus(
    inputs: list[str],
    tokenizer: str,
    output_prefix: str,
    *,
    workers: int = 1,
    kind: str = "auto",
    options: ReadOptions | None = None,
    skip_bad_rows: bool = False,
    overwrite: bool = False,
    progress: Callable[[list[Source]], AbstractContextManager[Callable[[int], None]]] | None = None,
) -> BuildReport:
    """Tokenize files into PREFIX.bin, PREFIX.idx, PREFIX.meta.json and PREFIX.digests.json; every document ends with EOS.

    Documents keep the order of the input. Documents without a token are skipped and counted.

    Args:
        inputs: Files, folders and globs (see `sources.find_sources`).
        tokenizer: Tokenizer folder.
        output_prefix: PREFIX of the files.
        workers: Number of processes that tokenize; 1 tokenizes in this process.
        kind: Format of the files; "auto" chooses by suffix.
        options: How documents are found in the files.
        skip_bad_rows: Whether to count rows without text instead of stopping at the first one.
        overwrite: Whether to replace a complete corpus at the prefix.
        progress: Function from the sources to a context manager that returns a function, which is called with the
            number of bytes just read.

    Raises:
        UserError: If an input, the tokenizer or the output cannot be used, a row is bad, or there is no document.
    """
    options = options or ReadOptions()
    sources = find_sources(inputs, kind)
    encoder = open_encoder(tokenizer)
    meta = {
        "format": 1,
        "tokenizer_fingerprint": fingerprint(tokenizer),
        "vocab_size": encoder.vocab_size,
        "eos_id": encoder.eos_id,
        "dtype": token_dtype(encoder.vocab_size).name,
    }
    if encoder.eos_id is None or encoder.eos_id < 0:
        raise UserError(
            f"tokenizer {tokenizer}: it has no EOS token, which must end every document. Use a tokenizer that has one."
        )
    report = BuildReport()
    with _Output(output_prefix, overwrite) as output, (progress or _no_progress)(sources) as advance:
        results = encode_blocks(read_blocks(sources, options), tokenizer, options, workers)
        for encoded in results:
            if encoded.problems and not skip_bad_rows:
                results.close()
                raise UserError(f"{encoded.problems[0]}. Fix the row, or skip such rows with --skip_bad_rows.")
            report.add(encoded)
            output.append(encoded)
            advance(encoded.read_bytes)
        if not report.n_documents:
            raise UserError(
                f"no document in {counted(len(sources), 'input file')}: "
                f"{counted(report.empty_documents, 'empty document')}, {counted(report.bad_rows, 'bad row')}. Give files with "
                "text; nothing was written."
            )
        counts = {k: v for k, v in asdict(report).items() if k not in ("problems", "special_tokens")}
        output.finish(token_dtype(encoder.vocab_size), {**meta, **counts})
    return report


@contextmanager
def _no_progress(sources: list[Source]) -> Iterator[Callable[[int], None]]:
    yield lambda count: None


class _Output:
    """The files of a corpus under temporary names, renamed when they are complete.

    Files of a killed build are overwritten. A running build holds a lock on its files.
    """

    def __init__(self, prefix: str, overwrite: bool) -> None:
        self._prefix, self._overwrite = prefix, overwrite
        self._hash, self._digest = hashlib.sha256(), xxhash.xxh3_128()
        self._finished = False
        self._new_folders: list[Path] = []

    def __enter__(self) -> _Output:
        if not os.path.basename(self._prefix):
            raise UserError(f"--output_prefix {self._prefix}: is a folder. Add a name: {self._prefix}corpus.")
        finished = Path(self._prefix + ".idx")
        if finished.exists() and not self._overwrite:
            raise UserError(f"{finished}: a corpus exists already. Use another --output_prefix or --overwrite.")
        try:
            self._new_folders = [folder for folder in finished.parents if not folder.exists()]
            finished.parent.mkdir(parents=True, exist_ok=True)
            self._data = self._open(".bin")
            self._sizes = SizesFile(self._open(".sizes"))
        except OSError as error:
            raise UserError(
                f"--output_prefix {self._prefix}: cannot be written: {error.strerror}. Use a writable folder."
            ) from error
        return self

    def _open(self, suffix: str) -> BinaryIO:
        stream = open(self._prefix + suffix + _BUILDING, "ab+")  # noqa: SIM115 (open during the whole build)
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.close()
            raise UserError(
                f"--output_prefix {self._prefix}: another build is writing to it. Wait for it or use another prefix."
            ) from None
        stream.truncate(0)
        return stream

    def append(self, encoded: Encoded) -> None:
        """Write the documents of one block."""
        raw = encoded.ids.tobytes()
        self._hash.update(raw)
        self._digest.update(raw)
        self._write(lambda: self._data.write(raw))
        self._write(lambda: self._sizes.append(encoded.sizes))

    def finish(self, dtype: np.dtype, meta: dict[str, Any]) -> None:
        """Write the index and the metadata, and rename all files."""
        self._write(lambda: self._rename(dtype, meta))

    def _rename(self, dtype: np.dtype, meta: dict[str, Any]) -> None:
        self._data.flush()
        os.fsync(self._data.fileno())
        with open(self._prefix + ".idx" + _BUILDING, "wb") as stream:
            write_index(stream, dtype, self._sizes.count, self._sizes)
            stream.flush()
            os.fsync(stream.fileno())
        meta = {
            **meta,
            "data_key": data_key(Path(self._prefix + ".bin" + _BUILDING)),
            "data_sha256": self._hash.hexdigest(),
        }
        Path(self._prefix + ".meta.json" + _BUILDING).write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")
        data, index = (Path(self._prefix + suffix + _BUILDING) for suffix in (".bin", ".idx"))
        records = {".bin": record(data, self._digest.hexdigest()), ".idx": record(index, file_digest(index))}
        write_records(Path(self._prefix + DIGESTS + _BUILDING), records)
        Path(self._prefix + ".sizes" + _BUILDING).unlink()
        # A corpus exists once its index does: remove an old index before its tokens, and rename the new one last.
        Path(self._prefix + ".idx").unlink(missing_ok=True)
        for suffix in (".meta.json", DIGESTS, ".bin", ".idx"):
            os.replace(self._prefix + suffix + _BUILDING, self._prefix + suffix)
        self._finished = True

    def _write(self, action: Callable[[], object]) -> None:
        try:
            action()
        except OSError as error:
            raise UserError(
                f"--output_prefix {self._prefix}: writing failed: {error.strerror}. Check the disk and its free space."
            ) from error

    def __exit__(self, *exception: object) -> None:
        for suffix in () if self._finished else (*_SUFFIXES, ".sizes"):
            Path(self._prefix + suffix + _BUILDING).unlink(missing_ok=True)
        self._sizes.close()
        self._data.close()
        if not self._finished:
            with suppress(OSError):  # another build may write to the folder
                for folder in self._new_folders:
                    folder.rmdir()
