"""The fused sum of sequence-parallel gradients (`--fuse_sequence_parallel_allreduce`) as Paddle means it.

Paddle 3.3.1 registers a hook that takes the gradient where hooks are called without arguments, so the first backward pass
ends with "GradNodePyLayer_ReduceScatterOp: Get backward function failed". On GPUs as well.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def mend_fused_reduction() -> None:
    """Let Paddle's hook be called without arguments. To be called before the trainer wraps the model; may be repeated."""
    from paddle.distributed.fleet.utils import sequence_parallel_utils as upstream

    create = upstream.create_fused_allreduce_gradient_hook
    if getattr(create, "is_mended", False):
        return

    def create_hook(parameters: list[Any], accumulation_steps: int) -> Callable[[], None]:
        hook = create(parameters, accumulation_steps)
        return lambda: hook(None)  # it only hands its argument back

    create_hook.is_mended = True  # type: ignore[attr-defined]
    upstream.create_fused_allreduce_gradient_hook = create_hook
