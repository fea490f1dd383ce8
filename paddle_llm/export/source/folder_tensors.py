"""The weights of a model folder, with PaddleNLP's or Hugging Face's names."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from paddle_llm.families import Family
from paddle_llm.models.weights.files import DOUBLE, WeightFiles
from paddle_llm.models.weights.load import locate_weights

if TYPE_CHECKING:
    from paddlenlp.transformers import PretrainedConfig


class FolderTensors:
    """The weights of a model folder as separate matrices, from files with any supported names and layouts.

    Args:
        folder: The model folder.
        family: Model family.
        config: PaddleNLP's configuration.
        shapes: Shape of every required weight.
        allow_pickle: Whether torch's pickles may be read if there are no safetensors.

    Raises:
        UserError: If weights are missing or have the wrong shape, or a file is broken or refused.
    """

    def __init__(
        self,
        folder: Path,
        family: Family,
        config: PretrainedConfig,
        shapes: dict[str, tuple[int, ...]],
        *,
        allow_pickle: bool,
    ) -> None:
        self._files = WeightFiles(folder, allow_pickle=allow_pickle)
        self._shapes = shapes
        self._columns = locate_weights(self._files, shapes, family, config)

    def names(self) -> list[str]:
        """Return the canonical names."""
        return list(self._shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a weight."""
        return self._shapes[name]

    def dtype(self, name: str) -> str:
        """Return the type of a weight: "float32" (also if stored as float64), "bfloat16" or "float16"."""
        stored = self._files.dtype(self._columns[name][0].source)
        return "float32" if stored in DOUBLE else stored

    def read(self, name: str) -> np.ndarray:
        """Return the whole tensor, which must not be modified and may be mapped; bfloat16 as uint16 bits."""
        parts = []
        for column in self._columns[name]:
            whole = self._files.view(column.source)
            whole = whole.T if column.transpose else whole
            parts.append(whole[..., column.source_start : column.source_start + column.stop - column.start])
        whole = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)
        return whole.astype(np.float32) if whole.dtype == np.float64 else whole
