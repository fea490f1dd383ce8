"""Sharding stage 2 on top of fleet's stage 1, combined with data, tensor and pipeline parallelism.

Fleet's stage-1 optimizer (paddle 3.3.1, DygraphShardingOptimizer) assigns every parameter to a sharding rank, its
owner, which keeps its optimizer state. Stage 2 does the same with gradients: during the backward pass of a micro-batch
they are averaged on their owners and freed on the other ranks. (ZeRO, Rajbhandari et al. 2020, section 5.2.)

During the backward pass a rank holds the gradients that it owns and those in flight (`buckets.py`): at most
`bucket_mb`, or the largest gradient times the number of buckets in flight if that is more. A few vectors stay whole on
every rank until the end of a step, when sequence parallelism sums their gradients over tensor ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import paddle
import paddle.distributed as dist
from paddle import Tensor
from paddle.base import core
from paddle.distributed.fleet.base.topology import HybridCommunicateGroup
from paddle.distributed.fleet.meta_optimizers.dygraph_optimizer import (
    DygraphShardingOptimizer,
    HybridParallelOptimizer,
)
from paddle.distributed.fleet.meta_parallel import PipelineLayer

from paddle_llm.core.errors import UserError
from paddle_llm.parallel.zero.buckets import PARTS, GradientBuckets
from paddle_llm.parallel.zero.order_check import SameOrder
from paddle_llm.parallel.zero.owners import TIED_OWNER, rebalance

# Smallest and largest default for the bytes in flight. Between them, a bucket has this many gradients of matrices.
MIN_LIMIT, MAX_LIMIT, MATRICES_IN_A_BUCKET = 32 * 2**20, 2 * 2**30, 4


class ShardedGradients:
    """Keeps each gradient on the sharding rank that owns its parameter.

    Attributes:
        group: Sharding group.
        rank: Rank of this process in the group.
        parameters: Trainable parameters of the optimizer, of every owner.

    Args:
        optimizer: Fleet's hybrid optimizer over a stage-1 sharding optimizer, before its first step.
        broadcast_weights: Whether every rank holds all weights, which their owners broadcast after each step.
        pipeline: PipelineLayer, if there is one: its tied weights are summed by their owners.
        bucket_mb: MB (2**20 bytes) of gradients that may be in flight; not above 0 for `default_bucket_bytes`.

    Raises:
        UserError: If `sharding_parallel_config` lets fleet fuse or split parameters itself.
    """

    def __init__(
        self,
        optimizer: HybridParallelOptimizer,
        broadcast_weights: bool = True,
        pipeline: PipelineLayer | None = None,
        bucket_mb: float = 0.0,
    ):
        sharding = optimizer._inner_opt
        if type(sharding) is not DygraphShardingOptimizer or sharding.tensor_fusion or sharding.comm_overlap:
            raise UserError(
                "--sharding stage2 cannot be combined with split_param, enable_stage1_tensor_fusion or enable_stage1_overlap "
                "in --sharding_parallel_config, which arrange gradients for stage 1. Remove these words or use stage1."
            )
        rebalance(sharding)
        self._sharding = sharding
        self.group = sharding._hcg.get_sharding_parallel_group()
        self.rank = sharding._hcg.get_sharding_parallel_rank()
        self.parameters = [p for p in sharding._origin_parameter_list if p.trainable]
        self._reduced_late = [p for p in self.parameters if getattr(p, "sequence_parallel", False)]
        self._order = SameOrder(self.group, self.parameters)
        limit = int(bucket_mb * 2**20) if bucket_mb > 0 else default_bucket_bytes(self.parameters)
        self._buckets = GradientBuckets(self.group, self.rank, self.owner, limit, self._order)
        self._in_backward = False
        self._handed_over = False
        reduced_late = {p.name for p in self._reduced_late}
        for parameter in self.parameters:
            if parameter.name not in reduced_late:
                parameter._register_backward_hook(self._hook(parameter))
        self._pipeline = pipeline
        if pipeline is not None:
            # The pipeline calls it after the last micro-batch; `_finish_step` calls the original, on the owners.
            pipeline.allreduce_shared_weight_gradients = _do_nothing
        sharding.reduce_gradients = self._finish_step
        sharding._sharding_sync_parameters = self._broadcast_parameters if broadcast_weights else _do_nothing

    def owner(self, parameter: Tensor) -> int:
        """Return the rank in the sharding group that updates a parameter and keeps its gradient and state."""
        return self._sharding._param2rank[parameter.name]

    @property
    def sums(self) -> dict[str, Tensor]:
        """Gradients that this rank owns, by parameter name, summed over the step's micro-batches so far."""
        return self._buckets.sums

    def hand_over(self) -> None:
        """Give the owned parameters their gradients, the means over the group, after the last backward pass of a step.

        The optimizer's step does it, too. Call it earlier if something else reads gradients before the step (the loss
        scaler, the reduction over data-parallel ranks).
        """
        self._buckets.hand_over(self._sharding._rank2params[self.rank])
        self._handed_over = True

    def _hook(self, parameter: Tensor) -> Callable[..., None]:
        def take(*_: Any) -> None:
            if self._handed_over:
                raise RuntimeError(
                    "backward pass after hand_over(): call hand_over() after the last backward pass of a step"
                )
            if not self._in_backward:
                self._in_backward = True
                core.eager._add_backward_final_hook(self._end_backward)
            self._buckets.add(parameter)

        return take

    def _end_backward(self) -> None:
        """Send the gradients that wait. Paddle's engine calls this after a backward pass or a recomputed part."""
        self._in_backward = False
        self._buckets.send_all()

    @paddle.no_grad()
    def _finish_step(self, parameters: Iterable[Tensor], hcg: HybridCommunicateGroup) -> None:
        """Reduce the gradients that waited for the end of the step, and hand all over; replaces stage 1's reduction."""
        for parameter in self._reduced_late:
            self._buckets.add(parameter)
        self._buckets.send_all()
        self.hand_over()
        self._order.end_of_step()
        self._handed_over = False
        if self._pipeline is not None and self.rank == TIED_OWNER:
            type(self._pipeline).allreduce_shared_weight_gradients(self._pipeline)

    @paddle.no_grad()
    def _broadcast_parameters(self) -> None:
        """Broadcast the updated parameters; replaces stage 1's method, which selects them by gradients, freed here."""
        tasks = [
            dist.broadcast(parameter, src=self.group.ranks[rank], group=self.group, sync_op=False)
            for rank, parameters in self._sharding._rank2params.items()
            for parameter in parameters
            if parameter.trainable
        ]
        for task in tasks:
            task.wait()


def default_bucket_bytes(parameters: Iterable[Tensor]) -> int:
    """Return the default for the bytes in flight: a bucket holds several matrices, so that few collectives are needed.

    For LLaMA-2 7B with float32 gradients: buckets of 455 MiB, 1.8 GiB in flight.

    Args:
        parameters: Trainable parameters.
    """
    sizes = [p.size * (4 if hasattr(p, "main_grad") else p.element_size()) for p in parameters if p.ndim > 1]
    mean = sum(sizes) // max(len(sizes), 1)
    return min(max(PARTS * MATRICES_IN_A_BUCKET * mean, MIN_LIMIT), MAX_LIMIT)


def _do_nothing() -> None:
    """Replace a method whose work is done elsewhere."""
