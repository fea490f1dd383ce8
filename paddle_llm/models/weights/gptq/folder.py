"""Finds the linear layers of a folder that are stored in GPTQ's layout."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np

from paddle_llm.core.artifacts import MODEL_CONFIG
from paddle_llm.core.errors import UserError
from paddle_llm.core.json_files import read_json_object
from paddle_llm.models.weights.gptq.format import (
    G_IDX,
    PARTS,
    QWEIGHT,
    GPTQSettings,
    PackedMatrix,
    read_settings,
    shape_problem,
)

_INTEGERS = ("I32", "int32")


class Tensors(Protocol):
    """The tensors of the files by name."""

    def names(self) -> list[str]:
        """Return the names."""

    def shape(self, name: str, /) -> tuple[int, ...]:
        """Return a shape."""

    def dtype(self, name: str, /) -> str:
        """Return the type, as the file names it."""

    def view(self, name: str, /) -> np.ndarray:
        """Return the values as stored; bfloat16 as bits in uint16."""


def settings_of_folder(folder: Path) -> GPTQSettings | None:
    """Return the settings of a folder whose config.json describes GPTQ; None for every other folder."""
    file = folder / MODEL_CONFIG
    settings = read_settings(read_json_object(file)) if file.is_file() else None
    return settings if isinstance(settings, GPTQSettings) else None


def find_packed(
    folder: Path, tensors: Tensors, settings: GPTQSettings
) -> dict[str, tuple[PackedMatrix, tuple[str, ...]]]:
    """Return the quantized layers.

    Args:
        folder: The folder, for messages.
        tensors: The tensors of its files.
        settings: Settings from its config.json.

    Returns:
        Name of the dequantized weight -> (the layer, names of its tensors).

    Raises:
        UserError: If tensors of a layer are missing or do not fit together.
    """
    names = set(tensors.names())
    found = {}
    for name in sorted(names):
        if not name.endswith(f".{QWEIGHT}"):
            continue
        layer = name.removesuffix(QWEIGHT)
        parts = {part: layer + part for part in PARTS if layer + part in names}
        problem = shape_problem({part: tensors.shape(one) for part, one in parts.items()}, settings)
        wrong = [one for part, one in parts.items() if part != "scales" and tensors.dtype(one) not in _INTEGERS]
        if wrong:
            problem = f"{wrong[0]} is stored as {tensors.dtype(wrong[0])} instead of I32"
        if problem:
            raise UserError(
                f"{folder}: the quantized layer {layer.rstrip('.')} is broken: {problem}. Fetch the folder again."
            )
        groups, outputs = tensors.shape(parts["scales"])
        inputs = tensors.shape(name)[0] * 32 // settings.bits
        if G_IDX in parts:
            _check_groups(folder, parts[G_IDX], tensors.view(parts[G_IDX]), groups)
        read = partial(_read, tensors, layer)
        matrix = PackedMatrix(settings, read, G_IDX in parts, (outputs, inputs))
        found[f"{layer}weight"] = (matrix, tuple(parts.values()))
    return found


def _read(tensors: Tensors, layer: str, part: str) -> np.ndarray:
    return tensors.view(layer + part)


def _check_groups(folder: Path, name: str, groups_I: np.ndarray, count: int) -> None:
    if groups_I.min(initial=0) < 0 or groups_I.max(initial=0) >= count:
        raise UserError(
            f"{folder}: {name} names a group that does not exist; there are {count}. Fetch the folder again."
        )
