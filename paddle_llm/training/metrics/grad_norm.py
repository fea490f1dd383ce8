"""The global gradient norm before clipping, read where the optimizer computes it.

In one process and with plain data parallelism, our own clip computes and reports it. In a hybrid layout fleet replaces
that clip by its `HybridParallelClipGrad`, whose sums are read after its all-reduces (paddle 3.3.1).
"""

from __future__ import annotations

from collections.abc import Callable

import paddle
from paddle import nn
from paddle.nn.clip import _squared_l2_norm

# Larger than any norm, small enough that max_norm / max_norm is exactly 1 in float32.
_NO_CLIPPING = 1e30
_FLEET_EPSILON = 1e-6  # of HybridParallelClipGrad
_Gradients = list[tuple[paddle.Tensor, paddle.Tensor | None]]


class RecordingClip(nn.ClipGradByGlobalNorm):
    """Clipping by the global norm that reports the norm.

    Attributes:
        observe: Function that gets the norm of all gradients before clipping, a scalar tensor.

    Args:
        max_norm: Largest norm after clipping; 0 or less to leave the gradients unchanged.
    """

    def __init__(self, max_norm: float):
        super().__init__(clip_norm=max_norm if max_norm > 0 else _NO_CLIPPING)
        self.observe: Callable[[paddle.Tensor], None] = lambda norm: None

    @paddle.no_grad()
    def _dygraph_clip(self, params_grads: _Gradients) -> _Gradients:
        squares = [
            _squared_norm(grad)
            for param, grad in params_grads
            if grad is not None and getattr(param, "need_clip", True)
        ]
        if not squares:
            return params_grads
        norm = paddle.concat(squares).sum().sqrt()
        self.observe(norm)
        if self.clip_norm == _NO_CLIPPING:
            return params_grads
        # The scale is at most 1. Fleet's epsilon is added because otherwise layouts would differ where norms are small,
        # as those of adapters are.
        scale = self.clip_norm / (paddle.clip(norm, min=self.clip_norm) + _FLEET_EPSILON)
        clipped = []
        for param, grad in params_grads:
            if grad is not None and getattr(param, "need_clip", True):
                grad.multiply_(scale.astype(grad.dtype))
            clipped.append((param, grad))
        return clipped


def _squared_norm(gradient: paddle.Tensor) -> paddle.Tensor:
    """Return the sum of squares in float32, [1].

    The kernel is the one of fleet's clip: it reads a gradient once and makes no copy. Its result has the type of its
    input, so 16-bit gradients are cast. Otherwise their sum would overflow (float16, above a norm of 256) or keep
    8 bits (bfloat16).
    """
    return _squared_l2_norm(gradient if gradient.dtype == paddle.float32 else gradient.astype("float32"))


class GradNormReader:
    """Reads the global gradient norm of each step of an optimizer, also of one that fleet has wrapped.

    Args:
        optimizer: Optimizer as the training loop uses it.
        observe: Function that gets each norm, a scalar on the device, when all gradients are reduced and none is
            clipped or applied yet. It may raise an exception.

    Raises:
        RuntimeError: If the optimizer has no clip that can be read.
    """

    def __init__(self, optimizer: paddle.optimizer.Optimizer, observe: Callable[[paddle.Tensor], None]):
        clip = unwrapped(optimizer)._grad_clip
        if isinstance(clip, RecordingClip):
            clip.observe = observe
        elif hasattr(clip, "_global_norm"):
            _observe_reduction(clip, observe)
        else:
            raise RuntimeError(f"cannot read the gradient norm of {type(optimizer).__name__} with clip {clip!r}")


def _observe_reduction(clip: nn.ClipGradBase, observe: Callable[[paddle.Tensor], None]) -> None:
    reduce_sums = clip._global_norm

    def reduce_and_observe(distributed_sum: paddle.Tensor, replicated_sum: paddle.Tensor) -> None:
        reduce_sums(distributed_sum, replicated_sum)
        observe((distributed_sum + replicated_sum).sqrt())

    clip._global_norm = reduce_and_observe


def unwrapped(optimizer: paddle.optimizer.Optimizer) -> paddle.optimizer.Optimizer:
    """Return Paddle's own optimizer inside fleet's wrappers."""
    while True:
        inner = optimizer.__dict__.get("_inner_opt") or optimizer.__dict__.get("_inner_optimizer")
        if inner is None:
            return optimizer
        optimizer = inner
