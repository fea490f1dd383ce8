"""Which part of a full tensor a tensor-parallel rank holds. Used for random weights, loading, and gathering.

A parameter is split along one axis. Along it the full tensor may consist of several sections that are each split evenly
(ChatGLM2's query_key_value is all queries, then all keys, then all values), so a rank holds one range of each section.
Names are the canonical ones of `names.py`; shapes are PaddleNLP's ([in, out] for a matrix).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np

_ROW, _COLUMN = 0, -1

# family -> (end of a name, axis); what matches nothing is whole on every rank.
_SPLIT_AXES: dict[str, tuple[tuple[str, int], ...]] = {
    "llama": (
        (r"embed_tokens\.weight", _ROW),
        (r"lm_head\.weight", _COLUMN),
        (r"(o_proj|down_proj)\.weight", _ROW),
        (r"(qkv|q|k|v|gate|up|gate_up_fused)_proj\.weight", _COLUMN),
    ),
    "chatglm": (
        (r"word_embeddings\.weight", _ROW),
        (r"(attention\.dense|dense_4h_to_h)\.weight", _ROW),
        (r"(query_key_value|dense_h_to_4h)\.(weight|bias)", _COLUMN),
    ),
    "chatglm_v2": (
        (r"word_embeddings\.weight", _ROW),
        (r"output_layer\.weight", _COLUMN),
        (r"(self_attention\.dense|dense_4h_to_h)\.weight", _ROW),
        (r"(query_key_value|dense_h_to_4h)\.(weight|bias)", _COLUMN),
    ),
    "bloom": (
        (r"word_embeddings\.weight", _ROW),
        (r"(self_attention\.dense|dense_4h_to_h)\.weight", _ROW),
        (r"(query_key_value|dense_h_to_4h)\.(weight|bias)", _COLUMN),
    ),
    "opt": (
        (r"word_embeddings\.weight", _ROW),
        (r"(out_proj|linear2)\.weight", _ROW),
        (r"((q|k|v)_proj|linear1)\.(weight|bias)", _COLUMN),
        (r"project_(in|out)\.weight", _COLUMN),
    ),
    "glm": (
        (r"word_embeddings\.weight", _ROW),
        (r"(attention\.dense|dense_4h_to_h)\.weight", _ROW),
        (r"(query_key_value|dense_h_to_4h)\.(weight|bias)", _COLUMN),
    ),
    "qwen2": (
        (r"embed_tokens\.weight", _ROW),
        (r"lm_head\.weight", _COLUMN),
        (r"(o_proj|down_proj)\.weight", _ROW),
        (r"(q|k|v)_proj\.(weight|bias)", _COLUMN),
        (r"(gate|up)_proj\.weight", _COLUMN),
    ),
}


@dataclass(frozen=True)
class Shard:
    """One rank's part of a full tensor.

    Attributes:
        shape: of the full tensor.
        axis: the one along which it is split (>= 0).
        ranges: (start, stop) along `axis`, in the order in which the rank holds them; the whole axis when not split.
    """

    shape: tuple[int, ...]
    axis: int
    ranges: tuple[tuple[int, int], ...]

    @property
    def is_split(self) -> bool:
        return self.ranges != ((0, self.shape[self.axis]),)

    def take(self, full: np.ndarray) -> np.ndarray:
        """The rank's part of the full tensor."""
        if not self.is_split:
            return full
        index = [slice(None)] * full.ndim
        parts = []
        for start, stop in self.ranges:
            index[self.axis] = slice(start, stop)
            parts.append(full[tuple(index)])
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=self.axis)


def split_axis(family: str, name: str, ndim: int) -> int:
    """The axis along which tensor parallelism splits this parameter, >= 0 (0 for one that is never split)."""
    for pattern, axis in _SPLIT_AXES[family]:
        if re.search(rf"(^|\.){pattern}$", name):
            return axis % ndim
    return 0


def shard_of(family: str, name: str, local_shape: list[int], split: bool, config: Any, degree: int, rank: int) -> Shard:
    """The part of parameter `name` that tensor-parallel rank `rank` of `degree` holds.

    Args:
        local_shape: of the parameter on this rank.
        split: whether it is split at all (`parameter.is_distributed`): key-value heads that do not divide are not.
        config: PaddleNLP's configuration of the model.
    """
    axis = split_axis(family, name, len(local_shape))
    if not split or degree == 1:
        return Shard(tuple(local_shape), axis, ((0, local_shape[axis]),))
    shape = list(local_shape)
    shape[axis] *= degree
    if family == "glm" and "query_key_value" in name:
        return Shard(tuple(shape), axis, _head_by_head(shape[axis], config.num_attention_heads, degree, rank))
    ranges, offset = [], 0
    for size in _sections(family, name, shape[axis], config):
        part = size // degree
        ranges.append((offset + rank * part, offset + (rank + 1) * part))
        offset += size
    return Shard(tuple(shape), axis, tuple(ranges))


def _head_by_head(width: int, heads: int, degree: int, rank: int) -> tuple[tuple[int, int], ...]:
    """GLM: all queries, then all keys, then all values in one process; a rank has query, key, value of head after head."""
    hidden, size = width // 3, width // 3 // heads
    own = range(rank * heads // degree, (rank + 1) * heads // degree)
    return tuple((part * hidden + head * size, part * hidden + (head + 1) * size) for head in own for part in range(3))


def _sections(family: str, name: str, width: int, config: Any) -> tuple[int, ...]:
    """Sizes of the sections along the split axis; their sum is `width`."""
    if family == "chatglm_v2" and "query_key_value" in name:
        keys = (width - config.hidden_size) // 2
        return (config.hidden_size, keys, keys)
    # Both are halved on each rank by swiglu, so each rank needs its part of the gate and of the up projection.
    if "gate_up_fused_proj" in name or (family == "chatglm_v2" and "dense_h_to_4h" in name):
        return (width // 2, width // 2)
    return (width,)
