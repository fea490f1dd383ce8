"""Apply the non-finite guard and sharding stages 2 and 3 to an optimizer, in the order of `apply_sharding`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import paddle
from paddle.distributed.fleet.meta_parallel import PipelineLayer

from paddle_llm.config.layout import Layout
from paddle_llm.parallel.zero.stage2 import ShardedGradients
from paddle_llm.parallel.zero.stage3 import ShardedWeights
from paddle_llm.training.metrics.grad_norm import GradNormReader
from paddle_llm.training.step.nan_guard import NanGuard

if TYPE_CHECKING:
    from paddle_llm.models.protocols import LanguageModel


class Sharding(NamedTuple):
    """Objects that `apply_sharding` has added to an optimizer.

    Attributes:
        grad_norm_reader: Reader of the global gradient norm of each step.
        gradients: Sharded gradients in stages 2 and 3, else None.
        weights: Sharded weights in stage 3, else None.
    """

    grad_norm_reader: GradNormReader
    gradients: ShardedGradients | None
    weights: ShardedWeights | None


def apply_sharding(
    model: LanguageModel,
    optimizer: paddle.optimizer.Optimizer,
    layout: Layout,
    *,
    guard: NanGuard,
    check_norm: Callable[[paddle.Tensor], None],
    bucket_mb: float,
    offload_weights: bool,
) -> Sharding:
    """Add the norm reader, the non-finite guard and sharding stages 2 and 3 to an optimizer, on top of fleet's stage 1.

    PaddleNLP is given stage 1 for every stage (`training/arguments.py`), so fleet's wrappers of stage 1 must be
    complete before this function is called. It replaces methods of the optimizer, and each step relies on the ones
    before it.

    Args:
        model: Network without fleet's wrapper.
        optimizer: Optimizer as the training loop uses it, before its first step.
        layout: Layout of the job; its `sharding_stage` decides.
        guard: Guard that may skip an update.
        check_norm: Function that gets the global gradient norm of each step before the update; it may raise.
        bucket_mb: Size of a bucket of gradients in MB (2**20 bytes); 0 or less for the default.
        offload_weights: Whether an owner's weights are kept in host memory in stage 3.
    """
    # 1. The norm reader replaces the clip's observer. Fleet replaces the clip itself when it wraps the optimizer, so
    #    the reader needs the wrapped optimizer.
    reader = GradNormReader(optimizer, check_norm)
    # 2. The guard wraps `step`. `check_norm` raises an exception inside `step` to skip an update, and the guard catches
    #    it there.
    guard.guard(optimizer)
    stage = layout.sharding_stage if layout.sharding > 1 else 0
    gradients = weights = None
    # 3. Stage 2 replaces fleet's reduction of gradients and its broadcast of updated weights. It chooses the owners of
    #    the parameters again, which stage 3 uses for the weights.
    if stage >= 2:
        gradients = ShardedGradients(
            optimizer,
            broadcast_weights=stage == 2,
            pipeline=model if isinstance(model, PipelineLayer) else None,
            bucket_mb=bucket_mb,
        )
    # 4. Stage 3 wraps the reduction of stage 2 and replaces its broadcast: owners keep their updated weights. From here
    #    on, a rank holds its own weights only.
    if stage == 3 and gradients is not None:
        weights = ShardedWeights(
            model,
            optimizer,
            gradients,
            offload=offload_weights,
            prefetch=paddle.get_device() != "cpu",  # a collective of gloo has finished when the call returns
        )
    return Sharding(reader, gradients, weights)
