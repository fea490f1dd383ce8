"""The global gradient norm before clipping, taken where the optimizer computes it anyway.

In one process and under plain data parallelism our own clip computes and tells it; in a hybrid layout fleet replaces
that clip by its `HybridParallelClipGrad`, whose sums are read after its all-reduces (paddle 3.3.1).
"""

from __future__ import annotations

from collections.abc import Callable

import paddle
from paddle import nn
from paddle.nn.clip import _squared_l2_norm

# Larger than any norm, small enough that max_norm / max_norm is exactly 1 in float32.
_NO_CLIPPING = 1e30
_FLEETS_EPSILON = 1e-6  # of HybridParallelClipGrad


class RecordingClip(nn.ClipGradByGlobalNorm):
    """Clipping by the global norm that tells the norm.

    Attributes:
        observe: is called with the norm of all gradients before clipping, a scalar tensor.
    """

    def __init__(self, max_norm: float):
        super().__init__(clip_norm=max_norm if max_norm > 0 else _NO_CLIPPING)
        self.observe: Callable[[paddle.Tensor], None] = lambda norm: None

    @paddle.no_grad()
    def _dygraph_clip(self, params_grads):
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
        # Never above 1. With fleet's epsilon: where norms are small, as an adapter's are, layouts would differ by it.
        scale = self.clip_norm / (paddle.clip(norm, min=self.clip_norm) + _FLEETS_EPSILON)
        clipped = []
        for param, grad in params_grads:
            if grad is not None and getattr(param, "need_clip", True):
                grad.multiply_(scale.astype(grad.dtype))
            clipped.append((param, grad))
        return clipped


def _squared_norm(gradient: paddle.Tensor) -> paddle.Tensor:
    """The sum of squares in fp32, [1], by the kernel that fleet's clip uses: it reads a gradient once and makes no copy.

    Its result has the type of its input: of 16-bit gradients it would overflow (fp16, above a norm of 256) or keep 8 bits.
    """
    return _squared_l2_norm(gradient if gradient.dtype == paddle.float32 else gradient.astype("float32"))


class GradNormReader:
    """The global gradient norm of each step of an optimizer, however fleet has wrapped it.

    Attributes:
        observers: are called in turn with each norm, a scalar on the device, when all gradients are reduced and none is
            clipped or applied yet.

    Args:
        optimizer: as the training loop uses it.
        check: the first observer; it may raise.

    Raises:
        RuntimeError: the optimizer has no clip that could be read.
    """

    def __init__(self, optimizer, check: Callable[[paddle.Tensor], None]):
        self.observers = [check]
        clip = innermost(optimizer)._grad_clip
        if isinstance(clip, RecordingClip):
            clip.observe = self._observe
        elif hasattr(clip, "_global_norm"):
            self._observe_reduction(clip)
        else:
            raise RuntimeError(f"cannot read the gradient norm of {type(optimizer).__name__} with clip {clip!r}")

    def _observe(self, norm: paddle.Tensor) -> None:
        for observer in self.observers:
            observer(norm)

    def _observe_reduction(self, clip) -> None:
        reduce_sums = clip._global_norm

        def reduce_and_observe(distributed_sum, replicated_sum):
            reduce_sums(distributed_sum, replicated_sum)
            self._observe((distributed_sum + replicated_sum).sqrt())

        clip._global_norm = reduce_and_observe


def innermost(optimizer):
    """Paddle's own optimizer beneath what fleet has wrapped around it."""
    while True:
        inner = optimizer.__dict__.get("_inner_opt") or optimizer.__dict__.get("_inner_optimizer")
        if inner is None:
            return optimizer
        optimizer = inner
