"""Find the tensors of a folder that a weight of the network consists of, under PaddleNLP's or Hugging Face's names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from paddle_llm.families import FAMILIES
from paddle_llm.models.weights import names
from paddle_llm.models.weights.files import WeightFiles
from paddle_llm.models.weights.findings import Findings

if TYPE_CHECKING:
    from paddlenlp.transformers import PretrainedConfig

_ROWS_PER_COMPARISON = 8192


@dataclass(frozen=True)
class Column:
    """Columns (or rows) [start, stop) of a weight, which are [source_start, ...) of a tensor in the files.

    Attributes:
        start: First column.
        stop: Column after the last one.
        source: Name of the tensor in the files.
        source_start: First column in that tensor.
        transpose: Whether the files store the transposed weight.
    """

    start: int
    stop: int
    source: str
    source_start: int
    transpose: bool


class WeightLocator:
    """Locates the weights of one network in weight files.

    Args:
        files: Weight files.
        family: Name of the family.
        config: PaddleNLP's configuration of the network.
        findings: Findings, to which this class adds missing, wrong and used tensors.
    """

    def __init__(self, files: WeightFiles, family: str, config: PretrainedConfig, findings: Findings):
        self._files, self._family, self._config, self._findings = files, family, config, findings
        self._is_hugging_face = is_hugging_face(files, family)

    def locate(self, name: str, shape: tuple[int, ...], axis: int) -> list[Column] | None:
        """Return where the files store a weight; None, with a finding, if they do not.

        Args:
            name: Canonical name.
            shape: Full shape without padding.
            axis: Axis along which the columns are counted.
        """
        found = self._find(name, len(shape))
        if found is not None:
            return self._whole(*found, shape, axis)
        pieces = names.fused_pieces(self._family, name, self._config)
        sources = [self._find(piece.source, len(shape)) for piece in pieces]
        columns = []
        for piece, source in zip(pieces, sources, strict=True):
            if source is None:
                break
            self._findings.used.add(source[0])
            if not self._is_weight(source[0]):
                return None
            columns.append(Column(piece.start, piece.stop, source[0], piece.source_start, source[1]))
        else:
            if columns:
                return columns if self._are_wide_enough(columns, shape) else None
        expected = names.hugging_face(self._family, name, len(shape)).name if self._is_hugging_face else name
        self._findings.missing.append(f"{expected} {list(shape)}")
        return None

    def check_tied_head(self) -> None:
        """Check that a tied head in the files equals the embedding, which PaddleNLP's network uses instead."""
        files, family, findings = self._files, self._family, self._findings
        head = names.tied_head(family, self._config, is_hugging_face=self._is_hugging_face)
        prefix = FAMILIES[family].weights.hugging_face_base_prefix
        is_unprefixed = self._is_hugging_face and prefix and not _has_prefix(files, prefix)
        if is_unprefixed and names.HUGGING_FACE_TIED_HEAD in files:
            findings.wrong.append(
                f"{names.HUGGING_FACE_TIED_HEAD} occurs with names without {prefix!r}, which transformers also refuses: "
                f"add {prefix!r} to the other names, or remove the head"
            )
        if head is None or head not in files:
            return
        findings.used.add(head)
        candidates, _ = self._candidates(names.EMBEDDINGS[family], 2)
        embedding = next((candidate for candidate in candidates if candidate in files), None)
        if embedding is None or files.shape(head) != files.shape(embedding) or _are_equal(files, head, embedding):
            return
        remedy = ""
        if FAMILIES[family].weights.tie == "configured":
            remedy = f"; set tie_word_embeddings to false to use {head}, or remove it from the files"
        findings.wrong.append(f"{head} differs from {embedding}, which this model uses as its head{remedy}")

    def _find(self, canonical: str, ndim: int) -> tuple[str, bool] | None:
        """Return the name of a weight in the files, and whether it is stored transposed; None if it is missing."""
        candidates, transpose = self._candidates(canonical, ndim)
        return next(((candidate, transpose) for candidate in candidates if candidate in self._files), None)

    def _candidates(self, canonical: str, ndim: int) -> tuple[tuple[str, ...], bool]:
        """Return the names that a weight may have in these files, and whether it is stored transposed.

        In files of a network without its head, names lack the prefix. As in transformers, either all names of a folder
        have the prefix or none has it.
        """
        family = self._family
        if self._is_hugging_face:
            tensor = names.hugging_face(family, canonical, ndim)
            full, transpose = tensor.name, tensor.transpose
            candidates = names.hugging_face_candidates(family, full)
            prefix = FAMILIES[family].weights.hugging_face_base_prefix
        else:
            full, transpose = canonical, False
            candidates, prefix = names.paddlenlp_candidates(family, canonical), FAMILIES[family].base_prefix
        return ((full,) if prefix and _has_prefix(self._files, prefix) else candidates), transpose

    def _whole(self, source: str, transpose: bool, shape: tuple[int, ...], axis: int) -> list[Column] | None:
        """Return the location of a weight that is one tensor in the files; None, with a finding, if it does not fit."""
        self._findings.used.add(source)
        stored, required = self._files.shape(source), shape[::-1] if transpose else shape
        if stored != required:
            self._findings.wrong.append(f"{source} has shape {list(stored)}, config.json requires {list(required)}")
            return None
        return [Column(0, shape[axis], source, 0, transpose)] if self._is_weight(source) else None

    def _is_weight(self, source: str) -> bool:
        if self._files.is_weight(source):
            return True
        self._findings.wrong.append(
            f"{source} is stored as {self._files.dtype(source)} (quantized weights are not supported: use fp32, fp16 or bf16)"
        )
        return False

    def _are_wide_enough(self, columns: list[Column], shape: tuple[int, ...]) -> bool:
        for column in columns:
            stored = self._files.shape(column.source)
            rows, width = (stored[1], stored[0]) if column.transpose else (stored[0], stored[1])
            if rows != shape[0] or width < column.source_start + column.stop - column.start:
                self._findings.wrong.append(
                    f"{column.source} has shape {list(stored)}, which does not fit the model's {list(shape)}"
                )
                return False
        return True


def is_hugging_face(files: WeightFiles, family: str) -> bool:
    """Return whether the files have Hugging Face's names and layouts; metadata decides if the names are ambiguous."""
    spec = FAMILIES[family]
    if not spec.weights.same_names and any(name.startswith(spec.base_prefix) for name in files.names()):
        return False
    # ChatGLM-6B, saved by PaddleNLP without its head, has names that begin like Hugging Face's.
    sign = spec.weights.hugging_face_sign
    if sign is not None and any(name.startswith(sign) for name in files.names()):
        return True
    return files.format not in ("np", "pd")


def _has_prefix(files: WeightFiles, prefix: str) -> bool:
    return any(name.startswith(prefix) for name in files.names())


def _are_equal(files: WeightFiles, one: str, other: str) -> bool:
    """Return whether two matrices of equal shape are equal; they are compared in pieces."""
    rows = files.shape(one)[0]
    for start in range(0, rows, _ROWS_PER_COMPARISON):
        stop = min(start + _ROWS_PER_COMPARISON, rows)
        if not np.array_equal(files.read(one, 0, start, stop), files.read(other, 0, start, stop)):
            return False
    return True
