"""The manifest of a checkpoint: its origin, and size and digest of every other file. It is written last.

The manifest contains a digest of itself, so that a damaged one is detected as well.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import xxhash

from paddle_llm.checkpoint.format.index import FORMAT, VERSION, Index, check_version
from paddle_llm.core.artifacts import CHECKPOINT_INDEX, MANIFEST
from paddle_llm.core.atomic_output import MARK
from paddle_llm.core.durable_files import BLOCK_BYTES, FileRecord, flush, write_durably
from paddle_llm.core.errors import UserError
from paddle_llm.core.json_files import parse_json

_TYPES: dict[str, tuple[type, ...]] = {
    "step": (int,),
    "layout": (dict,),
    "global_batch": (int,),
    "identity": (dict, type(None)),
    "settings": (dict, type(None)),
    "versions": (dict,),
    "elsewhere": (list,),
}


class DamagedCheckpoint(UserError):
    """A checkpoint that must not be used.

    Attributes:
        folder: Folder of the checkpoint.
        file: Name of the file that is damaged.
        problem: What is wrong with the file, such as "is missing".
    """

    def __init__(self, folder: Path, file: str, problem: str) -> None:
        self.folder, self.file, self.problem = folder, file, problem
        super().__init__(f"{folder} is damaged: {file} {problem}. Use another checkpoint.")


@dataclass(frozen=True)
class Manifest:
    """Origin and files of a checkpoint.

    Attributes:
        step: Optimizer step after which it was saved.
        layout: Layout of the job that saved it: the fields of `config.layout.Layout`.
        global_batch: Samples per optimizer step.
        identity: Network and data, compared on resume; None: unknown.
        settings: Settings of the training, compared on resume; None: unknown.
        versions: Versions of the libraries that wrote it.
        elsewhere: Names of files in the index that are on the disks of other machines; empty if all ranks wrote to one disk.
        files: Every other file by name.
    """

    step: int
    layout: Mapping[str, Any]
    global_batch: int
    identity: Mapping[str, Any] | None = None
    settings: Mapping[str, Any] | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    elsewhere: Sequence[str] = ()
    files: Mapping[str, FileRecord] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes of all files but the manifest."""
        return sum(record.nbytes for record in self.files.values())


def seal(folder: Path, manifest: Manifest, written: Mapping[str, FileRecord]) -> Manifest:
    """Write the manifest of a folder: the last file of a checkpoint. The folder is then renamed by `core.atomic_output.publish`.

    Args:
        folder: Folder with all other files. What a killed process left in it is recorded as well: begin with an empty one.
        manifest: Manifest without files.
        written: Records of the files that were written with `write_durably`. The others, which libraries have written, are
            read for their digests and flushed.

    Returns:
        The manifest with all files.

    Raises:
        ValueError: If a file of `written` is missing or has another size.
        OSError: If a file cannot be read or written.
    """
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != MARK:  # the mark of `staged_folder` is removed before the folder is renamed
            name = path.relative_to(folder).as_posix()
            files[name] = written[name] if name in written else _record(path)
    for name, record in written.items():
        if name not in files or (folder / name).stat().st_size != record.nbytes:
            raise ValueError(f"{folder / name} is missing, or was written again since")
    content = {**asdict(manifest), "files": {name: _record_json(record) for name, record in files.items()}}
    content = json.loads(json.dumps({"format": FORMAT, "version": VERSION, **content}))  # tuples, keys that are numbers
    content["digest"] = _digest_of(content)
    write_durably(folder / MANIFEST, [json.dumps(content, indent=1).encode()])
    return Manifest(**{**manifest.__dict__, "files": files})


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a checkpoint and check its digest; files are not checked: see `verify`.

    Raises:
        DamagedCheckpoint: If the manifest is missing, damaged or of another version.
    """
    content = read_json(folder, MANIFEST)
    try:
        return _from_json(content)
    except ValueError as error:
        raise DamagedCheckpoint(folder, MANIFEST, str(error)) from None


def has_this_format(folder: Path) -> bool:
    """Return whether a folder is a checkpoint of this format, damaged or not, and not one of version 0.2 or earlier."""
    try:
        content = read_json(folder, MANIFEST)
    except DamagedCheckpoint:
        return False
    return isinstance(content, dict) and ("format" in content or "digest" in content)


def read_json(folder: Path, name: str, record: FileRecord | None = None) -> Any:
    """Read a JSON file of a checkpoint.

    Args:
        folder: Folder of the checkpoint.
        name: Name of the file.
        record: Size and digest that it must have, from the manifest; None: only its syntax is checked.

    Raises:
        DamagedCheckpoint: If it is missing, not JSON or has another digest, or a key occurs twice.
    """
    try:
        return parse_json(read_bytes(folder, name, record), object_pairs_hook=_unique_keys)
    except ValueError as error:
        raise DamagedCheckpoint(folder, name, f"is not valid JSON: {error}") from None


def read_bytes(folder: Path, name: str, record: FileRecord | None) -> bytes:
    """Read a small file of a checkpoint.

    Raises:
        DamagedCheckpoint: If it is missing or has another digest.
    """
    try:
        content = (folder / name).read_bytes()
    except FileNotFoundError:
        raise DamagedCheckpoint(folder, name, "is missing") from None
    except OSError as error:
        raise DamagedCheckpoint(folder, name, f"cannot be read: {error.strerror or error}") from None
    if record is not None and (found := xxhash.xxh3_128_hexdigest(content)) != record.xxh3_128:
        raise DamagedCheckpoint(folder, name, f"has the digest {found}, not {record.xxh3_128}")
    return content


def read_index(folder: Path, manifest: Manifest) -> Index:
    """Read the index of a checkpoint and check its digest and the parts of every tensor.

    Raises:
        DamagedCheckpoint: If the index is missing, damaged or invalid, or names a file that the manifest lacks.
    """
    if CHECKPOINT_INDEX not in manifest.files:
        raise DamagedCheckpoint(folder, MANIFEST, f"does not name {CHECKPOINT_INDEX}")
    try:
        index = Index.from_json(read_json(folder, CHECKPOINT_INDEX, manifest.files[CHECKPOINT_INDEX]))
    except ValueError as error:
        raise DamagedCheckpoint(folder, CHECKPOINT_INDEX, str(error)) from None
    for name in index.by_file():
        if name not in manifest.files and name not in manifest.elsewhere:
            raise DamagedCheckpoint(folder, CHECKPOINT_INDEX, f"names {name}, which is not in {MANIFEST}")
    return index


def write_json(folder: Path, name: str, value: Any) -> FileRecord:
    """Write a JSON file of a checkpoint and flush it.

    Raises:
        ValueError: If a number is not finite.
    """
    return write_durably(folder / name, [json.dumps(value, indent=1, allow_nan=False).encode()])


def _from_json(content: Any) -> Manifest:
    check_version(content)
    if content.get("digest") != _digest_of(content):
        raise ValueError("does not have the digest that it records")
    fields = {key: value for key, value in content.items() if key not in ("format", "version", "digest")}
    if set(fields) != {*_TYPES, "files"} or not all(type(fields[key]) in types for key, types in _TYPES.items()):
        raise ValueError("is not a manifest")
    files = fields["files"]
    if not isinstance(files, dict):
        raise ValueError("is not a manifest")
    return Manifest(**{**fields, "files": {name: _read_record(name, value) for name, value in files.items()}})


def _read_record(name: str, value: Any) -> FileRecord:
    parts = name.split("/")
    if "" in parts or "." in parts or ".." in parts or "\0" in name:
        raise ValueError(f"names a file outside of the checkpoint: {name!r}")
    if not isinstance(value, dict) or set(value) != {"bytes", "xxh3_128"}:
        raise ValueError(f"has an invalid record of {name}")
    nbytes, digest = value["bytes"], value["xxh3_128"]
    if type(nbytes) is not int or nbytes < 0 or type(digest) is not str:
        raise ValueError(f"has an invalid record of {name}")
    return FileRecord(nbytes, digest)


def _record_json(record: FileRecord) -> dict[str, Any]:
    return {"bytes": record.nbytes, "xxh3_128": record.xxh3_128}


def _record(path: Path) -> FileRecord:
    """Return the record of a file that another library has written, and flush the file."""
    flush(path)
    digest, size = xxhash.xxh3_128(), 0
    with path.open("rb") as stream:
        while block := stream.read(BLOCK_BYTES):
            digest.update(block)
            size += len(block)
    return FileRecord(size, digest.hexdigest())


def _digest_of(content: dict[str, Any]) -> str:
    """Return the digest of a manifest: of its JSON without the key "digest", with sorted keys and without spaces, in ASCII."""
    rest = {key: value for key, value in content.items() if key != "digest"}
    return xxhash.xxh3_128_hexdigest(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode())


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key occurs twice")
    return found
