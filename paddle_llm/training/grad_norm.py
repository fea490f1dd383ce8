"""The global gradient norm before clipping, taken where the optimizer computes it anyway.

In one process and under plain data parallelism our own clip computes and keeps it; in a hybrid layout fleet replaces
that clip by its `HybridParallelClipGrad`, whose reduced sums are read after its all-reduces (paddle 3.3.1).
"""

from __future__ import annotations

import paddle
from paddle import nn

# Larger than any norm, small enough that max_norm / max_norm is exactly 1 in float32.
_NO_CLIPPING = 1e30


class RecordingClip(nn.ClipGradByGlobalNorm):
    """Clipping by the global norm that remembers the norm.

    Attributes:
        last_norm: scalar tensor, the norm of all gradients of the last step before clipping; None before the first.
    """

    def __init__(self, max_norm: float):
        super().__init__(clip_norm=max_norm if max_norm > 0 else _NO_CLIPPING)
        self.last_norm: paddle.Tensor | None = None

    @paddle.no_grad()
    def _dygraph_clip(self, params_grads):
        squares = [
            grad.astype("float32").square().sum()
            for param, grad in params_grads
            if grad is not None and getattr(param, "need_clip", True)
        ]
        if not squares:
            return params_grads
        self.last_norm = paddle.stack(squares).sum().sqrt()
        # Never above 1, exactly 1 while the norm is below the limit.
        scale = self.clip_norm / paddle.clip(self.last_norm, min=self.clip_norm)
        if self.clip_norm == _NO_CLIPPING:
            return params_grads
        clipped = []
        for param, grad in params_grads:
            if grad is not None and getattr(param, "need_clip", True):
                grad.multiply_(scale.astype(grad.dtype))
            clipped.append((param, grad))
        return clipped


class GradNormReader:
    """Reads the last global gradient norm of an optimizer, however fleet has wrapped it.

    Raises:
        RuntimeError: the optimizer has no clip that could be read.
    """

    def __init__(self, optimizer):
        self._norm: paddle.Tensor | None = None
        clip = _innermost(optimizer)._grad_clip
        if isinstance(clip, RecordingClip):
            self._clip = clip
        elif hasattr(clip, "_global_norm"):
            self._clip = None
            self._observe(clip)
        else:
            raise RuntimeError(f"cannot read the gradient norm of {type(optimizer).__name__} with clip {clip!r}")

    def _observe(self, clip) -> None:
        reduce_sums = clip._global_norm

        def reduce_and_keep(distributed_sum, replicated_sum):
            reduce_sums(distributed_sum, replicated_sum)
            self._norm = (distributed_sum + replicated_sum).sqrt()

        clip._global_norm = reduce_and_keep

    def last(self) -> float | None:
        """The norm of the last optimizer step; None before the first."""
        norm = self._norm if self._clip is None else self._clip.last_norm
        return None if norm is None else float(norm)


def _innermost(optimizer):
    while True:
        inner = optimizer.__dict__.get("_inner_opt") or optimizer.__dict__.get("_inner_optimizer")
        if inner is None:
            return optimizer
        optimizer = inner
