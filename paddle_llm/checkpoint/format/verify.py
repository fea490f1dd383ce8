"""Verify a checkpoint. Nothing of a checkpoint is used before this has passed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, Literal

from paddle_llm.checkpoint.format.digested_file import DigestedFile
from paddle_llm.checkpoint.format.index import DTYPES, Part, TensorEntry, local_shape
from paddle_llm.checkpoint.format.manifest import DamagedCheckpoint, Manifest, read_bytes, read_index, read_manifest
from paddle_llm.core.artifacts import CHECKPOINT_INDEX, MANIFEST
from paddle_llm.core.errors import UserError
from paddle_llm.models.weights.safetensors_header import read_header

Level = Literal["fast", "full"]
_TENSORS = ".safetensors"


def verify(
    folder: str | Path,
    level: Level = "full",
    *,
    files: Iterable[str] | None = None,
    threads: int = 2,
    advance: Callable[[int], None] | None = None,
) -> Manifest:
    """Verify a checkpoint of this format.

    - fast: the set of files, the size of every file, the digests of all files without tensors, and that the headers of the
      safetensors files agree with the index. Reads no tensor.
    - full: also the digests of the safetensors files, and that weights are finite.

    Args:
        folder: Folder of the checkpoint.
        level: "fast" or "full".
        files: Names of the safetensors files whose digests are compared; None: all. With several ranks, each takes some.
        threads: Number of files that are read at the same time, each by one thread.
        advance: Function of the number of bytes that were verified, for a progress bar.

    Returns:
        Manifest of the checkpoint.

    Raises:
        DamagedCheckpoint: If the checkpoint is damaged. The message names the file.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    _check_files(folder, manifest)
    parts = read_index(folder, manifest).by_file()
    stored = [name for name in manifest.files if name.endswith(_TENSORS)]
    for name, record in manifest.files.items():
        if name in stored:
            _check_header(folder, name, parts.get(name, {}))
        elif name != CHECKPOINT_INDEX:
            read_bytes(folder, name, record)
    if level == "full":
        chosen = stored if files is None else sorted(set(stored) & set(files))
        _check_digests(folder, manifest, {name: parts.get(name, {}) for name in chosen}, threads, advance)
    return manifest


def problem_of(folder: str | Path, level: Level = "fast") -> str | None:
    """Return what is wrong with a checkpoint of this format, such as "index.json is missing"; None if it is valid."""
    try:
        verify(folder, level)
    except DamagedCheckpoint as damage:
        return f"{damage.file} {damage.problem}"
    return None


def _check_files(folder: Path, manifest: Manifest) -> None:
    """Check that the folder has the files of the manifest, with their sizes, and no others.

    Raises:
        DamagedCheckpoint: If it does not.
    """
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if not path.is_dir()}
    for name, record in manifest.files.items():
        path = found.get(name)
        if path is None or not path.is_file():
            raise DamagedCheckpoint(folder, name, "is missing")
        size = path.stat().st_size
        if size != record.nbytes:
            raise DamagedCheckpoint(folder, name, f"has {size} bytes, not {record.nbytes}")
    extra = sorted(set(found) - set(manifest.files) - {MANIFEST})
    if extra:
        raise DamagedCheckpoint(folder, extra[0], f"is not in {MANIFEST}")


def _check_header(folder: Path, name: str, parts: dict[str, tuple[TensorEntry, Part]]) -> None:
    """Check that the header of a safetensors file agrees with the index.

    Raises:
        DamagedCheckpoint: If it does not.
    """
    try:
        header, begin = read_header(folder / name)
    except UserError:
        raise DamagedCheckpoint(folder, name, "has a header that cannot be read") from None
    header.pop("__metadata__", None)
    for key in sorted(set(header) | set(parts)):
        if key not in parts:
            raise DamagedCheckpoint(folder, name, f"contains {key}, which is not in {CHECKPOINT_INDEX}")
        expected = _header_entry(*parts[key], begin)
        if header.get(key) != expected:
            raise DamagedCheckpoint(
                folder, name, f"has {header.get(key)} for {key}, but {CHECKPOINT_INDEX} has {expected}"
            )
    end = begin
    for _, part in sorted(parts.values(), key=lambda one: (one[1].offset, one[1].nbytes)):
        if part.offset != end:
            raise DamagedCheckpoint(folder, name, f"has tensors that overlap or leave a gap at byte {end}")
        end += part.nbytes
    if end != (folder / name).stat().st_size:
        raise DamagedCheckpoint(folder, name, f"has bytes after its last tensor, which ends at {end}")


def _header_entry(entry: TensorEntry, part: Part, begin: int) -> dict[str, Any]:
    offsets = [part.offset - begin, part.offset - begin + part.nbytes]
    shape = list(local_shape(entry.shard(part)))
    return {"dtype": DTYPES[entry.dtype].safetensors, "shape": shape, "data_offsets": offsets}


def _check_digests(
    folder: Path,
    manifest: Manifest,
    parts: dict[str, dict[str, tuple[TensorEntry, Part]]],
    threads: int,
    advance: Callable[[int], None] | None,
) -> None:
    """Compare the digests of files, several at the same time, the largest first.

    Raises:
        DamagedCheckpoint: If a digest differs, or weights are not finite.
    """
    stopped = threading.Event()

    def progressed(nbytes: int) -> None:
        if stopped.is_set():
            raise _StoppedError
        if advance is not None:
            advance(nbytes)

    def check(name: str) -> None:
        file = DigestedFile(folder, name, manifest.files[name], parts[name], True, progressed)
        try:
            file.finish()
        finally:
            file.close()

    names = sorted(parts, key=lambda name: -manifest.files[name].nbytes)
    with ThreadPoolExecutor(threads) as readers:
        checks = [readers.submit(check, name) for name in names]
        try:
            for one in as_completed(checks):
                one.result()
        finally:  # after damage or a Ctrl-C, the other files are not read to their ends
            stopped.set()
            for one in checks:
                one.cancel()


class _StoppedError(Exception):
    """Ends the verification of a file after another was found damaged."""
