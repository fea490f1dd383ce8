"""The options of an export."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Options:
    """How an export is written.

    Attributes:
        dtype: "float32", "bfloat16", "float16" or, in a GGUF file, "q8_0"; None: each tensor as stored.
        max_shard_size: Maximum number of bytes of tensors in a weight file (a tensor is never split).
    """

    dtype: str | None = None
    max_shard_size: int = 5 * 10**9
