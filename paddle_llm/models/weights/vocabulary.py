"""Padding of the vocabulary for tensor parallelism, which the loss ignores and saved weights do not contain.

A vocabulary that does not divide by the tensor-parallel degree is padded with rows of zeros (columns of the head).
The loss masks the padding columns (`loss.py`), so that they take no part in the softmax and their gradients are exactly
zero; no token id reaches the rows. Code that saves a full tensor removes them with `unpad` and writes `plain_config`.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import numpy as np

from paddle_llm.models.weights.names import EMBEDDINGS, HEADS

if TYPE_CHECKING:
    from paddlenlp.transformers import PretrainedConfig


def padded_vocab_size(vocab_size: int, tensor: int) -> int:
    """Return the smallest multiple of the tensor-parallel degree that is not below the size of the vocabulary."""
    return -(-vocab_size // tensor) * tensor


def pad_config(config: PretrainedConfig, tensor: int) -> int:
    """Set the padded size in PaddleNLP's configuration, keep the real one, and return the number of padding rows."""
    config.unpadded_vocab_size = config.vocab_size
    config.vocab_size = padded_vocab_size(config.vocab_size, tensor)
    return config.vocab_size - config.unpadded_vocab_size


def real_vocab_size(config: PretrainedConfig) -> int:
    """Return the size of the vocabulary without padding."""
    return getattr(config, "unpadded_vocab_size", config.vocab_size)


def vocabulary_axis(family: str, name: str) -> int | None:
    """Return the axis of the vocabulary in a weight by its canonical name; None if it has none."""
    if name == EMBEDDINGS[family]:
        return 0
    return 1 if name == HEADS.get(family) else None


def unpad(family: str, name: str, full: np.ndarray, config: PretrainedConfig) -> np.ndarray:
    """Return a full weight, given by its canonical name, without padding."""
    axis = vocabulary_axis(family, name)
    if axis is None:
        return full
    return full[: real_vocab_size(config)] if axis == 0 else full[:, : real_vocab_size(config)]


def plain_config(config: PretrainedConfig) -> PretrainedConfig:
    """Return a copy of a model's configuration for saved full weights, without the layout of this run."""
    plain = copy.deepcopy(config)
    plain.vocab_size = real_vocab_size(config)
    if getattr(config, "folder_sequence_length", None) is not None:
        plain.max_sequence_length = config.folder_sequence_length
    plain.tensor_parallel_degree, plain.tensor_parallel_rank = 1, 0
    for name in ("unpadded_vocab_size", "folder_sequence_length"):
        if hasattr(plain, name):
            delattr(plain, name)
    return plain
