"""Digests of the content of corpus files. A file is read once, not at every start.

`data build` writes the digests of a corpus to PREFIX.digests.json. Such a digest is used as long as the file has the size and
modification time that are recorded with it. Other large files are read once and their digest is kept in the index cache.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xxhash

from paddle_llm.core.atomic_output import write_atomically
from paddle_llm.core.console import say
from paddle_llm.core.errors import UserError
from paddle_llm.core.json_files import read_json_object
from paddle_llm.data.corpus.cache_key import data_key

DIGESTS = ".digests.json"
_BLOCK_BYTES = 4 << 20
# A smaller file is read in a tenth of a second; its cache file would be clutter, or fail in a read-only folder.
_CACHE_ABOVE_BYTES = 128 << 20


def record(path: Path, digest: str) -> dict[str, Any]:
    """Return what is recorded about a file: its size, modification time and digest."""
    state = path.stat()
    return {"bytes": state.st_size, "modified_ns": state.st_mtime_ns, "xxh3_128": digest}


def records_of(prefix: str) -> dict[str, Any]:
    """Return the records in PREFIX.digests.json by suffix; {} if the file does not exist or cannot be read."""
    try:
        found = read_json_object(Path(prefix + DIGESTS))
    except UserError:
        return {}
    return {suffix: one for suffix, one in found.items() if isinstance(one, dict)}


def file_digest(path: Path, recorded: Mapping[str, Any] | None = None, cache_dir: Path | None = None) -> str:
    """Return the xxh3-128 digest of a whole file, from a record of it, from the cache, or by reading it.

    Args:
        path: The file.
        recorded: Record of the file from `record`; None if there is none.
        cache_dir: Folder that keeps the digest of a large file.
    """
    state = path.stat()
    known = (state.st_size, state.st_mtime_ns)
    if recorded is not None and (recorded.get("bytes"), recorded.get("modified_ns")) == known:
        return str(recorded["xxh3_128"])
    cached = None
    if cache_dir is not None and state.st_size > _CACHE_ABOVE_BYTES:
        cached = cache_dir / f"digest-{data_key(path)}-{state.st_mtime_ns}.txt"
        if cached.is_file():
            return cached.read_text()
        say(f"data: {path}: reading {state.st_size / 1e9:.1f} GB for its digest")
    digest = xxhash.xxh3_128()
    with open(path, "rb") as stream:
        while block := stream.read(_BLOCK_BYTES):
            digest.update(block)
    if cached is not None:
        try:
            write_atomically(cached, digest.hexdigest().encode())
        except UserError as error:
            say(f"data: {error} The file is read again at the next start.")
    return digest.hexdigest()


def write_records(path: Path, records: Mapping[str, Mapping[str, Any]]) -> None:
    """Write records by suffix to a file."""
    path.write_text(json.dumps(records, indent=2) + "\n", encoding="utf-8")
