"""Vocabulary padding for tensor parallelism: exact in the loss, gone on save.

A vocabulary that does not divide by the tensor-parallel degree is padded with rows of zeros (columns of the head).
The loss masks the padding columns (`loss.py`), so that they take no part in the softmax and their gradients are exactly
zero; no token id reaches the rows. Whoever saves a full tensor cuts them off with `unpad`, and writes `plain_config`.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from paddle_llm.models.weights.names import EMBEDDINGS, HEADS


def padded_vocab_size(vocab_size: int, tensor: int) -> int:
    """The smallest multiple of the tensor-parallel degree that holds the vocabulary."""
    return -(-vocab_size // tensor) * tensor


def pad_config(config: Any, tensor: int) -> int:
    """Make PaddleNLP's configuration say the padded size, remember the real one; returns the number of padding rows."""
    config.unpadded_vocab_size = config.vocab_size
    config.vocab_size = padded_vocab_size(config.vocab_size, tensor)
    return config.vocab_size - config.unpadded_vocab_size


def real_vocab_size(config: Any) -> int:
    """The size of the vocabulary without padding."""
    return getattr(config, "unpadded_vocab_size", config.vocab_size)


def vocabulary_axis(family: str, name: str) -> int | None:
    """The axis of the vocabulary in a weight with this canonical name, None if it has none."""
    if name == EMBEDDINGS[family]:
        return 0
    return 1 if name == HEADS.get(family) else None


def unpad(family: str, name: str, full: np.ndarray, config: Any) -> np.ndarray:
    """A full weight (canonical name) without its padding; unchanged when it has none."""
    axis = vocabulary_axis(family, name)
    if axis is None:
        return full
    return full[: real_vocab_size(config)] if axis == 0 else full[:, : real_vocab_size(config)]


def plain_config(config: Any) -> Any:
    """A copy of a model's configuration as it should stand beside saved full weights: nothing of this run's layout."""
    plain = copy.deepcopy(config)
    plain.vocab_size = real_vocab_size(config)
    if getattr(config, "folder_sequence_length", None) is not None:
        plain.max_sequence_length = config.folder_sequence_length
    plain.tensor_parallel_degree, plain.tensor_parallel_rank = 1, 0
    for name in ("unpadded_vocab_size", "folder_sequence_length"):
        if hasattr(plain, name):
            delattr(plain, name)
    return plain
