"""The layer that makes logits of hidden states, in every family: giving it only the positions whose logits somebody reads.

Logits are the largest tensor of a step (B x S x V numbers, several times over for the loss), and most of an instruction's
are those of its question, which no loss looks at.

Shapes: B rows, S positions, H hidden, V vocabulary, M positions that bear loss.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import reduce
from typing import Any, NamedTuple

import paddle


class _Head(NamedTuple):
    """Where the head is in a network, and the axis of positions in its hidden states; GLM's has no name: there the layer
    before it."""

    path: str = "lm_head"
    length_axis: int = 1


_HEADS = {
    "llama": _Head(),
    "qwen2": _Head(),
    "chatglm_v2": _Head("chatglm_v2.output_layer", 0),
    "bloom": _Head(),
    "opt": _Head(),
    "chatglm": _Head(length_axis=0),
    "glm": _Head("glm.transformer.final_layernorm"),
}


@contextmanager
def last_position_alone(model: Any, family: str) -> Iterator[None]:
    """Logits [B, 1, V] of the last position."""

    def last(hidden: paddle.Tensor, length_axis: int) -> paddle.Tensor:
        return hidden[:, -1:] if length_axis == 1 else hidden[-1:]

    with _given(model, family, last):
        yield


@contextmanager
def given_positions_alone(
    model: Any, family: str, positions_M: paddle.Tensor, labels_shape: tuple[int, int]
) -> Iterator[None]:
    """Logits [1, M, V] of the given positions of all rows.

    Not for sequence parallelism, whose heads are given a part of the positions.

    Args:
        positions_M: Indices into the flattened labels, on the device (`data/counted_batches.py`).
        labels_shape: B and S.
    """
    rows, length = labels_shape

    def picked(hidden: paddle.Tensor, length_axis: int) -> paddle.Tensor:
        indices_M = positions_M if length_axis == 1 else positions_M % length * rows + positions_M // length
        chosen = paddle.gather(hidden.reshape([-1, hidden.shape[-1]]), indices_M)
        return chosen.unsqueeze(1 - length_axis)

    with _given(model, family, picked):
        yield


@contextmanager
def _given(model: Any, family: str, choose: Callable[[paddle.Tensor, int], paddle.Tensor]) -> Iterator[None]:
    """The head is given `choose(hidden states, axis of positions)`."""
    path, axis = _HEADS[family]
    layer = reduce(getattr, path.split("."), model)
    if path.endswith("layernorm"):
        hook = layer.register_forward_post_hook(lambda _, __, output: choose(output, axis))
    else:
        hook = layer.register_forward_pre_hook(lambda _, inputs: (choose(inputs[0], axis), *inputs[1:]))
    try:
        yield
    finally:
        hook.remove()
