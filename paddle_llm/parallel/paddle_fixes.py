"""Fixes of paddle.distributed (3.3.1) for every device. Fixes for CPU ranks are in `gloo/`, for sharding in `zero/`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from paddle_llm.core.upstream import replace

if TYPE_CHECKING:
    import paddle
    from paddle.distributed.fleet.meta_parallel import PipelineLayer


def fix_fused_sequence_parallel_reduction() -> None:
    """Let Paddle's hook for `--fuse_sequence_parallel_allreduce` be called without arguments. May be called twice.

    Paddle registers a hook that takes the gradient where hooks are called without arguments. The first backward pass
    then ends with "GradNodePyLayer_ReduceScatterOp: Get backward function failed". Call this before the trainer wraps
    the model.
    """
    from paddle.distributed.fleet.utils import sequence_parallel_utils as upstream

    create = upstream.create_fused_allreduce_gradient_hook
    if getattr(create, "is_fixed", False):
        return

    def create_hook(parameters: list[paddle.Tensor], accumulation_steps: int) -> Callable[[], None]:
        hook = create(parameters, accumulation_steps)
        return lambda: hook(None)  # the hook only returns its argument

    create_hook.is_fixed = True  # type: ignore[attr-defined]
    why = "It creates a hook that takes the gradient, for a place where hooks are called without arguments."
    replace(upstream, "create_fused_allreduce_gradient_hook", create_hook, why)


def count_shared_weights_once(pipeline: PipelineLayer) -> list[str]:
    """Mark the weights that pipeline stages share, so that they count once in the gradient norm.

    Paddle compares the name of the shared attribute ("embedding_weight") with the names of parameters
    ("embedding_0.w_0"), finds no match, and adds the square of the shared gradient once per stage. Clipping then uses a
    norm that is too large. Call this after the layer is built and before its optimizer makes its first step.

    Args:
        pipeline: Pipeline of this rank.

    Returns:
        Names of the parameters that were marked.
    """
    marked = []
    for comm in pipeline.shared_comm.values():
        for attribute in comm["weight_attr"]:
            parameter = getattr(comm["layer"], attribute)
            parameter.is_firstly_shared = pipeline.global_rank == min(comm["ranks"])
            marked.append(parameter.name)
    return marked
