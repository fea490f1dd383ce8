"""The switch for faster versions of PaddleNLP's operations on a CPU, and what these versions have in common.

PaddleNLP's networks are written for GPUs, where small operations are fused. On a CPU (Paddle 3.3.1) some of them cost
as much as a matrix product: `pow(2)` takes 100 times as long as `square`, a sum over rows 50 times as long as a product
with ones, a transposed copy 7 times as long as split and concat, and a product that broadcasts in the middle 8 times as
long as one that does not. The versions in `cpu_elementwise.py` and `cpu_attention.py` use the cheap operation, save for
the backward pass only what it needs, and give the same results.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import paddle

_state = {"enabled": False}


def enable() -> None:
    """Use the faster operations from now on, in all networks of this process."""
    _state["enabled"] = True


def disable() -> None:
    """Use PaddleNLP's own operations from now on."""
    _state["enabled"] = False


def is_enabled() -> bool:
    """Return whether the faster operations are used."""
    return _state["enabled"]


def faster_on_cpu(fast: Callable[..., Any]) -> Callable[[Any], Any]:
    """Return a decorator that adds a faster version to an operation of PaddleNLP.

    Args:
        fast: Faster version, whose first argument is PaddleNLP's operation.
    """

    def add_to(original: Any) -> Any:
        @wraps(original)
        def operation(*args: Any, **named: Any) -> Any:
            return fast(original, *args, **named) if _state["enabled"] else original(*args, **named)

        return operation

    return add_to


def all_float32(*tensors: paddle.Tensor) -> bool:
    """Return whether all tensors are in float32, the only type that the faster versions support."""
    return all(tensor.dtype == paddle.float32 for tensor in tensors)


def needs_gradient(*tensors: paddle.Tensor) -> list[bool]:
    """Return for each tensor whether it needs a gradient."""
    return [not tensor.stop_gradient for tensor in tensors]


def only_needed(needed: list[bool], *gradients: paddle.Tensor | None) -> tuple[paddle.Tensor | None, ...]:
    """Return the gradients with None for inputs that need none, as Paddle requires of a PyLayer.

    Args:
        needed: Result of `needs_gradient` in the forward pass.
        *gradients: Gradient of each input.
    """
    return tuple(gradient if wanted else None for gradient, wanted in zip(gradients, needed, strict=True))
