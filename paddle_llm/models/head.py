"""Compute logits only at the positions where they are read.

Logits are the largest tensor of a step (B x S x V numbers, several times for the loss). Most logits of an instruction
belong to its prompt, which has no loss.

Shapes: B rows, S positions, H hidden, V vocabulary, M positions with loss.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import reduce
from typing import TYPE_CHECKING

import paddle

from paddle_llm.families import FAMILIES

if TYPE_CHECKING:
    from paddle_llm.models.protocols import LanguageModel


@contextmanager
def logits_at_last_position(model: LanguageModel, family: str) -> Iterator[None]:
    """Let the model compute the logits of the last position only, [B, 1, V]."""

    def take_last(hidden: paddle.Tensor, length_axis: int) -> paddle.Tensor:
        return hidden[:, -1:] if length_axis == 1 else hidden[-1:]

    with _head_input_selected(model, family, take_last):
        yield


@contextmanager
def logits_at_positions(
    model: LanguageModel, family: str, positions_M: paddle.Tensor, labels_shape: tuple[int, int]
) -> Iterator[None]:
    """Let the model compute the logits of some positions only, [1, M, V].

    It does not support sequence parallelism, where the head receives a part of the positions.

    Args:
        model: Model in one process or in tensor-parallel ranks, not in pipeline stages.
        family: Name of its family.
        positions_M: Indices into the flattened labels, on the device (`data/counted_batches.py`).
        labels_shape: B and S.
    """
    rows, length = labels_shape

    def gather_positions(hidden: paddle.Tensor, length_axis: int) -> paddle.Tensor:
        indices_M = positions_M if length_axis == 1 else positions_M % length * rows + positions_M // length
        chosen = paddle.gather(hidden.reshape([-1, hidden.shape[-1]]), indices_M)
        return chosen.unsqueeze(1 - length_axis)

    with _head_input_selected(model, family, gather_positions):
        yield


@contextmanager
def _head_input_selected(
    model: LanguageModel, family: str, choose: Callable[[paddle.Tensor, int], paddle.Tensor]
) -> Iterator[None]:
    """Pass `choose(hidden states, axis of positions)` to the head."""
    network = FAMILIES[family].network
    layer: paddle.nn.Layer = reduce(getattr, network.head_path.split("."), model)
    axis = network.head_length_axis
    if network.head_is_norm:
        hook = layer.register_forward_post_hook(lambda _, __, output: choose(output, axis))
    else:
        hook = layer.register_forward_pre_hook(lambda _, inputs: (choose(inputs[0], axis), *inputs[1:]))
    try:
        yield
    finally:
        hook.remove()
