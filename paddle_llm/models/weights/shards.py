"""The part of a full tensor that a tensor-parallel rank holds, for random weights, loading and gathering.

A parameter is split along one axis. Along it the full tensor may consist of several sections that are each split evenly
(ChatGLM2's query_key_value is all queries, then all keys, then all values), so a rank holds one range of each section.
Names are the canonical ones of `names.py`; shapes are PaddleNLP's ([in, out] for a matrix).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from paddle_llm.families import FAMILIES

if TYPE_CHECKING:
    from paddlenlp.transformers import PretrainedConfig


@dataclass(frozen=True)
class Shard:
    """One rank's part of a full tensor.

    Attributes:
        shape: Shape of the full tensor.
        axis: Axis along which it is split (>= 0).
        ranges: Ranges (start, stop) along `axis` in the rank's order; the whole axis if the tensor is not split.
    """

    shape: tuple[int, ...]
    axis: int
    ranges: tuple[tuple[int, int], ...]

    @property
    def is_split(self) -> bool:
        """Whether the rank holds less than the full tensor."""
        return self.ranges != ((0, self.shape[self.axis]),)

    def take(self, full: np.ndarray) -> np.ndarray:
        """Return the rank's part of the full tensor."""
        if not self.is_split:
            return full
        index = [slice(None)] * full.ndim
        parts = []
        for start, stop in self.ranges:
            index[self.axis] = slice(start, stop)
            parts.append(full[tuple(index)])
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=self.axis)


def assemble(shards: list[Shard], parts: list[np.ndarray]) -> np.ndarray:
    """Return the full tensor of which each rank holds a part.

    Args:
        shards: Shard of each tensor-parallel rank.
        parts: Values of each shard.
    """
    full = np.empty(shards[0].shape, parts[0].dtype)
    for shard, part in zip(shards, parts, strict=True):
        target, source, offset = [slice(None)] * full.ndim, [slice(None)] * full.ndim, 0
        for start, stop in shard.ranges:
            target[shard.axis] = slice(start, stop)
            source[shard.axis] = slice(offset, offset + stop - start)
            full[tuple(target)] = part[tuple(source)]
            offset += stop - start
    return full


def split_axis(family: str, name: str, ndim: int) -> int:
    """Return the axis along which tensor parallelism splits a parameter, >= 0 (0 if it is never split)."""
    return FAMILIES[family].weights.split_axis(name, ndim) or 0


def shard_of(
    family: str, name: str, local_shape: list[int], split: bool, config: PretrainedConfig, degree: int, rank: int
) -> Shard:
    """Return the part of a parameter that a tensor-parallel rank holds.

    Args:
        family: Name of the family.
        name: Canonical name of the parameter.
        local_shape: Shape of the parameter on this rank.
        split: Whether it is split (`parameter.is_distributed`), which key-value heads that do not divide are not.
        config: PaddleNLP's configuration of the model.
        degree: Tensor-parallel degree.
        rank: Tensor-parallel rank.
    """
    axis = split_axis(family, name, len(local_shape))
    if not split or degree == 1:
        return Shard(tuple(local_shape), axis, ((0, local_shape[axis]),))
    shape = list(local_shape)
    shape[axis] *= degree
    sections = next((kind for part, kind in FAMILIES[family].weights.sections if part in name), None)
    if sections == "by head":
        return Shard(tuple(shape), axis, _head_by_head(shape[axis], config.num_attention_heads, degree, rank))
    ranges, offset = [], 0
    for size in _sections(sections, shape[axis], config):
        part = size // degree
        ranges.append((offset + rank * part, offset + (rank + 1) * part))
        offset += size
    return Shard(tuple(shape), axis, tuple(ranges))


def _head_by_head(width: int, heads: int, degree: int, rank: int) -> tuple[tuple[int, int], ...]:
    """Return the ranges of a rank with query, key and value of each head; one process has all queries first (GLM)."""
    hidden, size = width // 3, width // 3 // heads
    own = range(rank * heads // degree, (rank + 1) * heads // degree)
    return tuple((part * hidden + head * size, part * hidden + (head + 1) * size) for head in own for part in range(3))


def _sections(kind: str | None, width: int, config: PretrainedConfig) -> tuple[int, ...]:
    """Return the sizes of the sections along the split axis; their sum is `width`."""
    if kind == "query, key, value":
        keys = (width - config.hidden_size) // 2
        return (config.hidden_size, keys, keys)
    return (width // 2, width // 2) if kind == "halves" else (width,)
