"""Files written whole or not at all, and a cheap key of a large file's content."""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from pathlib import Path

from paddle_llm.core.errors import UserError

CACHE_HINT = "Name a folder that can be with --data_cache."


def data_key(path: Path) -> str:
    """A cheap key of a file's content: its size and 64 blocks spread over it, hashed."""
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with open(path, "rb") as stream:
        for i in range(64):
            stream.seek(max(size - 4096, 0) * i // 63)
            digest.update(stream.read(4096))
    return digest.hexdigest()[:20]


def write_atomically(path: Path, content: bytes | memoryview, hint: str = "") -> None:
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
        raise UserError(f"{path}: cannot be written: {error.strerror}. {hint}".rstrip()) from error
    finally:
        with suppress(OSError):  # there is none when all went well, or no folder
            temporary.unlink()
