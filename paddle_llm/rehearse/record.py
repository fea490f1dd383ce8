"""The record of a training on one rank: the scalars of every step, and the rank's part of every tensor."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from paddle_llm.models.weights.shards import Shard

TENSORS = ("gradient", "weight", "moment1", "moment2")


@dataclass(frozen=True)
class Part:
    """A rank's part of a full tensor.

    Attributes:
        shard: Position of the part in the full tensor.
        values: Values in float32.
    """

    shard: Shard
    values: np.ndarray


@dataclass
class Step:
    """One optimizer step on one rank.

    Attributes:
        scalars: "loss" (of the global batch), "grad_norm" (before clipping), "eval_loss" (after the step).
        tensors: Parts by quantity and canonical name; gradients before clipping, all others after the step.
    """

    scalars: dict[str, float] = field(default_factory=dict)
    tensors: dict[str, dict[str, Part]] = field(default_factory=lambda: {name: {} for name in TENSORS})


@dataclass
class RankRecord:
    """All steps of one rank.

    Attributes:
        rank: Rank in the job.
        position: Its (data, sharding, tensor, pipeline) ranks.
        model: Facts of the network for the comparison: family, heads, head size.
        steps: Steps by number, 1 for the first.
    """

    rank: int
    position: tuple[int, int, int, int]
    model: dict[str, Any]
    steps: dict[int, Step] = field(default_factory=dict)
