"""The options of an export."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Options:
    """How an export is written.

    Attributes:
        dtype: "float32", "bfloat16" or "float16"; None: each tensor as it is stored.
        max_shard_size: bytes of tensors in one file of weights, at most (a tensor is never split).
    """

    dtype: str | None = None
    max_shard_size: int = 5 * 10**9
