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

import numpy as np
import paddle

from paddle_llm.models.loss import IGNORE_INDEX

# Below this share of positions it pays to copy their hidden states.
_WORTH_PICKING = 0.9


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
def labelled_positions_alone(model: Any, family: str, labels_BS: paddle.Tensor) -> Iterator[paddle.Tensor]:
    """Logits [1, M, V] of the positions whose label is not -100, of all rows; gives their labels [1, M].

    Where that is most of them, all positions and all labels as they are. Not for sequence parallelism, whose heads are
    given a part of the positions.
    """
    places_M = np.flatnonzero(labels_BS.numpy() != IGNORE_INDEX)
    rows, length = labels_BS.shape
    if len(places_M) > _WORTH_PICKING * rows * length:
        yield labels_BS
        return
    if not len(places_M):
        places_M = np.zeros(1, np.int64)  # of loss zero, and with gradients of zero

    def picked(hidden: paddle.Tensor, length_axis: int) -> paddle.Tensor:
        places = places_M if length_axis == 1 else places_M % length * rows + places_M // length
        chosen = paddle.gather(hidden.reshape([-1, hidden.shape[-1]]), paddle.to_tensor(places))
        return chosen.unsqueeze(1 - length_axis)

    labels_1M = paddle.gather(labels_BS.flatten(), paddle.to_tensor(places_M)).unsqueeze(0)
    with _given(model, family, picked):
        yield labels_1M


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
