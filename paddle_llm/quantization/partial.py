"""The results of finished layers, kept in a folder beside the output so that an interrupted quantization continues."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from paddle_llm.core.atomic_output import write_atomically
from paddle_llm.core.console import say
from paddle_llm.core.errors import UserError
from paddle_llm.core.json_files import read_json_object
from paddle_llm.models.weights.files import WeightFiles, write_safetensors

SUFFIX = ".quantizing"  # added to the name of the output folder
_STATE, _LOCK = "state.json", "lock"


class PartialResults:
    """Tensors of finished layers.

    Args:
        folder: Folder of the results.
        errors: Error of each linear layer, one mapping per finished layer.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any], errors: list[dict[str, float]]) -> None:
        self._folder, self._identity = folder, identity
        self.errors = errors

    def save(self, tensors: dict[str, np.ndarray], errors: dict[str, float]) -> None:
        """Keep the tensors of the next layer. They count as finished only after all of them are on disk."""
        file = self._file(len(self.errors))
        unfinished = file.with_suffix(".tmp")
        write_safetensors(unfinished, tensors)
        with unfinished.open("rb") as stream:
            os.fsync(stream.fileno())
        unfinished.rename(file)
        self.errors.append(errors)
        state = {"identity": self._identity, "errors": self.errors}
        write_atomically(self._folder / _STATE, json.dumps(state, indent=2).encode())

    def open(self, index: int) -> WeightFiles:
        """Open the tensors of a finished layer."""
        return WeightFiles(self._folder, file=self._file(index).name)

    def _file(self, index: int) -> Path:
        return self._folder / f"layer-{index:05}.safetensors"


@contextmanager
def partial_results(out: Path, identity: Mapping[str, Any]) -> Iterator[PartialResults]:
    """Yield the results for an output folder: those of an interrupted run with the same settings, or empty ones.

    They are removed after the body has succeeded, and kept if it has not.

    Args:
        out: Output folder.
        identity: Everything that determines the results, as JSON.

    Raises:
        UserError: If another process writes them, or they belong to other settings.
    """
    folder = out.with_name(out.name + SUFFIX)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{out} is being written by another command. Wait for it, or choose another folder."
            ) from None
        errors = _errors_of(folder, dict(identity))
        if errors:
            say(f"continuing an interrupted run: {len(errors)} layers are in {folder}")
        yield PartialResults(folder, identity, errors)
        shutil.rmtree(folder)


def _errors_of(folder: Path, identity: dict[str, Any]) -> list[dict[str, float]]:
    """Return the errors of the finished layers.

    Raises:
        UserError: If the layers belong to other settings.
    """
    if not (folder / _STATE).is_file():
        return []
    state = read_json_object(folder / _STATE)
    before = state.get("identity", {})
    different = sorted(key for key in {*identity, *before} if identity.get(key) != before.get(key))
    if different:
        key = different[0]
        raise UserError(
            f"{folder} contains an interrupted run with another {key}: {before.get(key)} instead of {identity.get(key)}. Remove the "
            "folder, or give the same options to continue that run."
        )
    return [dict(layer) for layer in state["errors"]]
