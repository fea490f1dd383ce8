"""Find the files with the weights of a model folder, and the file of each tensor.

The order is that of the libraries that write the folders: `_get_resolved_checkpoint_files` of transformers 4.55
(modeling_utils.py) for its names, `_resolve_model_file_path` of PaddleNLP 3.0.0b4 (model_utils.py) for `.pdparams`.

1. the file named by the key `transformers_weights` of config.json
2. `model.safetensors`, even if an index exists
3. `model.safetensors.index.json`
4. `model_state.pdparams.index.json`
5. `model_state.pdparams`
6. `pytorch_model.bin`, then `pytorch_model.bin.index.json`; only with --allow_pickle
7. `index.json` of a checkpoint of this library

An index names the file of every tensor. Files that look like weights and are not read are reported.
"""

from __future__ import annotations

import fnmatch
import os
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from paddle_llm.core.artifacts import (
    ADAPTER_CONFIG,
    CHECKPOINT_INDEX,
    MANIFEST,
    MODEL_CONFIG,
    PDPARAMS,
    SAFETENSORS,
    TORCH_WEIGHTS,
    TRAINING_ARGS,
)
from paddle_llm.core.errors import UserError
from paddle_llm.core.json_files import parse_json

_INDEX = ".index.json"
_LONGEST_NAME = 255  # bytes, on every common file system
_ORDER = (SAFETENSORS, SAFETENSORS + _INDEX, PDPARAMS + _INDEX, PDPARAMS)
_PICKLE_ORDER = (TORCH_WEIGHTS, TORCH_WEIGHTS + _INDEX)
_WEIGHT_SUFFIXES = (".safetensors", ".pdparams", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack", ".npz")
# Files with such a suffix that a training writes beside the weights and that contain none.
_STATE = (
    TRAINING_ARGS, "optimizer*", "master_weights*", "scheduler*", "scaler*", "rng_state*", "random_states*", "*_state.pt",
    "generation_config*",
)  # fmt: skip


@dataclass(frozen=True)
class WeightChoice:
    """Files that the weights of a folder are read from.

    Attributes:
        files: Files, sorted by name.
        index: File by tensor name; None if a single file contains all tensors.
        index_file: Index that `index` was read from.
        unread: Names of other files that look like weights, relative to the folder.
    """

    files: tuple[Path, ...]
    index: dict[str, Path] | None = None
    index_file: Path | None = None
    unread: tuple[str, ...] = field(default=())


def has_weights(folder: Path) -> bool:
    """Return whether a folder has weights that are read without --allow_pickle; they may be incomplete."""
    found = _first(folder, _ORDER) or _checkpoint_index(folder)
    return found is not None or _named_in_config(folder) is not None


def choose_weights(folder: Path, *, allow_pickle: bool = False) -> WeightChoice:
    """Choose the files with the weights of a folder.

    Args:
        folder: Model folder.
        allow_pickle: Whether to read torch's pickles if the folder has no other weights.

    Raises:
        UserError: If the folder has no weights, an index is broken, or a file that it names does not exist.
    """
    named = _named_in_config(folder)
    first = named or _first(folder, (*_ORDER, *_PICKLE_ORDER) if allow_pickle else _ORDER) or _checkpoint_index(folder)
    if first is None:
        raise UserError(_why_none(folder))
    if not _exists(first):
        raise UserError(f"{first} does not exist or is a broken link: {_target(first)}. Download the file again.")
    if first.name == CHECKPOINT_INDEX:
        return WeightChoice((first,))
    if not first.name.endswith(_INDEX):
        return WeightChoice((first,), unread=_unread(folder, {first}))
    index = _read_index(first)
    files = tuple(sorted(set(index.values())))
    return WeightChoice(files, index, first, _unread(folder, {first, *files}))


def _first(folder: Path, names: tuple[str, ...]) -> Path | None:
    """Return the first existing file. A broken link counts as existing, so that it is reported instead of reading another file."""
    return next((folder / name for name in names if (folder / name).is_file() or (folder / name).is_symlink()), None)


def _checkpoint_index(folder: Path) -> Path | None:
    """Return the index of a checkpoint."""
    index = folder / CHECKPOINT_INDEX
    return index if index.is_file() and (folder / MANIFEST).is_file() else None


def _named_in_config(folder: Path) -> Path | None:
    """Return the file that the key `transformers_weights` of config.json names."""
    try:
        named = parse_json((folder / MODEL_CONFIG).read_text(encoding="utf-8-sig")).get("transformers_weights")
    except (OSError, ValueError, AttributeError, RecursionError):  # read_model_facts reports that
        return None
    if named is None:
        return None
    if not isinstance(named, str) or not named.endswith((".safetensors", ".safetensors" + _INDEX)):
        raise UserError(
            f"{folder}/config.json: transformers_weights is {named!r}. Set it to a .safetensors file or its index, or remove it."
        )
    return _inside(folder, named, folder / MODEL_CONFIG)


def _exists(file: Path) -> bool:
    try:
        return file.is_file()
    except (OSError, ValueError):  # an impossible file name
        return False


def _shortened(name: str) -> str:
    return name if len(name) <= 80 else f"{name[:77]}..."


def _target(link: Path) -> str:
    try:
        return str(link.readlink()) if link.is_symlink() else _shortened(link.name)
    except (OSError, ValueError):
        return _shortened(link.name)


def _read_index(file: Path) -> dict[str, Path]:
    """Read an index.

    Returns:
        File by tensor name.

    Raises:
        UserError: If the index cannot be read, contradicts itself, or names a file that does not exist.
    """
    try:
        found = parse_json(file.read_text(encoding="utf-8-sig"), object_pairs_hook=unique_keys)
        weight_map = found["weight_map"]
        if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
            raise TypeError("weight_map is not a mapping to file names")
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror or error}. Download it again.") from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        reason = "it has no weight_map" if isinstance(error, KeyError) else str(error)
        raise UserError(f"{file} is not an index of weight files: {reason}. Download it again.") from None
    if not weight_map:
        raise UserError(f"{file} is not an index of weight files: its weight_map is empty. Download it again.")
    index = {tensor: _inside(file.parent, name, file) for tensor, name in weight_map.items()}
    missing = sorted({_shortened(path.name) for path in index.values() if not _exists(path)})
    if missing:
        raise UserError(
            f"{file.name} in {file.parent} names files that do not exist: {', '.join(missing)}. Download them again."
        )
    return index


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build a JSON object in which duplicate keys must have the same value.

    Raises:
        ValueError: If two values of a key differ.
    """
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found and found[key] != value:
            raise ValueError(f"duplicate key {key} with different values")
        found[key] = value
    return found


def _inside(folder: Path, name: str, where: Path) -> Path:
    """Return a file in the folder or below it.

    Raises:
        UserError: If the name points outside the folder, or cannot exist.
    """
    parts = PurePosixPath(name)
    if parts.is_absolute() or ".." in parts.parts or not parts.parts:
        raise UserError(f"{where} names a file outside its folder: {name!r}. Move the file into the folder.")
    try:
        is_possible = max(len(os.fsencode(part)) for part in parts.parts) <= _LONGEST_NAME and "\0" not in name
    except UnicodeEncodeError:
        is_possible = False
    if not is_possible:
        raise UserError(f"{where} names a file that cannot exist: {name[:80]!r}. Download it again.")
    return folder / name


def _unread(folder: Path, read: set[Path]) -> tuple[str, ...]:
    """Return other files that look like weights, also one level below (`original/consolidated.00.pth`)."""
    found = []
    try:
        for one in sorted(folder.iterdir()):
            if one.is_dir():
                inner = [file for file in sorted(one.iterdir()) if file not in read and _looks_like_weights(file)]
                # checkpoint-N and adapters are separate models
                if inner and not (one / MODEL_CONFIG).is_file() and not (one / ADAPTER_CONFIG).is_file():
                    found.append(f"{one.name}/")
            elif one not in read and _looks_like_weights(one):
                found.append(one.name)
    except OSError:  # a folder without list permission; its files may still be readable
        return ()
    return tuple(found)


def _looks_like_weights(file: Path) -> bool:
    if any(fnmatch.fnmatch(file.name, pattern) for pattern in _STATE):
        return False
    return file.name.endswith(
        (*_WEIGHT_SUFFIXES, *(f"{suffix}{_INDEX}" for suffix in (".safetensors", ".bin", ".pdparams")))
    )


def _why_none(folder: Path) -> str:
    """Return the message for a folder without readable weights, with what it contains instead."""
    if any(folder.glob("model_state.tp*.pdparams")) or any(folder.glob("model_state.*pp*.pdparams")):
        return (
            f"{folder} is a checkpoint split for one layout (model_state.tp*), not a model folder. Use the model/ folder of the run, "
            "merge it with paddle-llm export FOLDER --target hf OUT, or continue the run with --resume_from_checkpoint."
        )
    if any(folder.glob("pytorch_model*.bin")):
        if any((folder / name).is_file() for name in _PICKLE_ORDER):
            return (
                f"{folder} has only torch pickles (pytorch_model*.bin), a format that can contain code. Give --allow_pickle to read "
                "the tensors in them, or convert them to safetensors with Hugging Face's save_pretrained(..., "
                "safe_serialization=True)."
            )
        return (
            f"{folder} has no readable weights: {', '.join(_unread(folder, set()))}. "
            f"Add {TORCH_WEIGHTS}{_INDEX}, which names the files, or a single {TORCH_WEIGHTS}, and give --allow_pickle."
        )
    others = _unread(folder, set())
    seen = f" It has {', '.join(others[:8])}, which neither this program nor transformers reads." if others else ""
    return (
        f"{folder} has no weights ({SAFETENSORS}, {PDPARAMS}, or either with an index).{seen} "
        "Rename the file, or download the folder again."
    )
