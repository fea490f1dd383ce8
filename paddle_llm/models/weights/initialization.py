"""Random weights that depend only on the seed and the name of the parameter, not on the layout.

Every full tensor is drawn in blocks along the axis that tensor parallelism splits, each block from a separate stream
keyed by (seed, name, block). A rank draws only the blocks that it holds. One process and every layout start from
the same weights, and replicas are equal.
"""

from __future__ import annotations

import math
import zlib
from typing import TYPE_CHECKING

import numpy as np

from paddle_llm.families import Family
from paddle_llm.models.weights.names import canonical_parameters
from paddle_llm.models.weights.shards import Shard, shard_of
from paddle_llm.models.weights.vocabulary import real_vocab_size, vocabulary_axis

if TYPE_CHECKING:
    from paddle_llm.models.protocols import LanguageModel

_BLOCK = 64
_STANDARD_DEVIATION = 0.02


def initialize(model: LanguageModel, family: Family, seed: int) -> None:
    """Set every parameter of this rank.

    Matrices are normal with standard deviation `initializer_range` of the configuration (default 0.02). Matrices that
    write to the residual stream are divided by sqrt(2 layers) as in Megatron and PaddleNLP's LLaMA. Biases are 0, norms
    1.

    Args:
        model: Network.
        family: Its family.
        seed: Seed of the weights.
    """
    import paddle

    config = model.config
    layers = getattr(config, "n_layer", None) or config.num_hidden_layers
    deviation = getattr(config, "initializer_range", None) or _STANDARD_DEVIATION
    degree, rank = max(config.tensor_parallel_degree, 1), config.tensor_parallel_rank
    for name, parameter in canonical_parameters(model, family.name):
        split = bool(getattr(parameter, "is_distributed", False))
        shard = shard_of(family.name, name, parameter.shape, split, config, degree, rank)
        if len(parameter.shape) < 2:
            values = np.full(parameter.shape, 1.0 if name.endswith(".weight") else 0.0, np.float32)
        else:
            scale = 1 / math.sqrt(2 * layers) if name.endswith(family.weights.residual_outputs) else 1.0
            values = draw_normal(seed, name, shard) * np.float32(deviation * scale)
            clear_padding(values, shard, vocabulary_axis(family.name, name), real_vocab_size(config))
        with paddle.no_grad():
            parameter.set_value(paddle.to_tensor(values).astype(parameter.dtype))


def clear_padding(values: np.ndarray, shard: Shard, axis: int | None, real_size: int) -> None:
    """Set the rows or columns of a shard that pad the vocabulary to zero.

    Args:
        values: Values of the shard; changed in place.
        shard: This rank's shard of the tensor.
        axis: Axis of the vocabulary; None if the tensor has none.
        real_size: Size of the vocabulary without padding.
    """
    if axis is None or shard.shape[axis] == real_size:
        return
    first = shard.ranges[0][0] if axis == shard.axis else 0
    keep = max(real_size - first, 0)
    if axis == 0:
        values[keep:] = 0
    else:
        values[:, keep:] = 0


def draw_normal(seed: int, name: str, shard: Shard) -> np.ndarray:
    """Return a rank's part of the standard normal tensor of a seed and a name, in fp32."""
    parts = [_draw_range(seed, name, shard, start, stop) for start, stop in shard.ranges]
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=shard.axis)


def _draw_range(seed: int, name: str, shard: Shard, start: int, stop: int) -> np.ndarray:
    shape = list(shard.shape)
    others = shape[: shard.axis] + shape[shard.axis + 1 :]
    first = start // _BLOCK
    blocks = [_draw_block(seed, name, index, others) for index in range(first, -(-stop // _BLOCK))]
    values = np.concatenate(blocks)[start - first * _BLOCK : stop - first * _BLOCK]
    return np.ascontiguousarray(np.moveaxis(values, 0, shard.axis))


def _draw_block(seed: int, name: str, index: int, others: list[int]) -> np.ndarray:
    entropy = np.random.SeedSequence([seed, zlib.crc32(name.encode()), index])
    return np.random.Generator(np.random.Philox(entropy)).standard_normal((_BLOCK, *others), dtype=np.float32)
