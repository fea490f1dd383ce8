"""Sharding stage 2 on top of fleet's stage 1, in every composition: with data, tensor and pipeline parallelism.

Fleet's stage-1 optimizer (paddle 3.3.1, DygraphShardingOptimizer) gives every parameter an owner among the sharding
ranks, which alone keeps its optimizer state. Here the gradients follow: while the backward pass of a micro-batch runs,
they are averaged on their owners and freed elsewhere. (ZeRO, Rajbhandari et al. 2020, section 5.2.)

During the backward pass a rank holds the gradients that it owns, and what is in flight (`gradient_buckets`): at most
`bucket_mb`, or as many times the largest gradient as buckets are in flight if that is more. The few vectors whose
gradients sequence parallelism sums over tensor ranks at the end of a step stay whole on every rank until then.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import paddle
import paddle.distributed as dist
from paddle.base import core
from paddle.distributed.fleet.meta_optimizers.dygraph_optimizer import DygraphShardingOptimizer

from paddle_llm.core.errors import UserError
from paddle_llm.parallel.zero.buckets import PARTS, GradientBuckets
from paddle_llm.parallel.zero.order_check import SameOrder
from paddle_llm.parallel.zero.owners import TIED_OWNER, rebalance

# Bytes in flight, at least and at most, and gradients of matrices that a bucket holds in between.
LEAST_LIMIT, LARGEST_LIMIT, MATRICES_IN_A_BUCKET = 32 * 2**20, 2 * 2**30, 4


class ShardedGradients:
    """Keeps each gradient on the sharding rank that owns its parameter.

    Attributes:
        group, rank: the sharding group, and this process's rank in it.
        parameters: the trainable parameters of the optimizer, of every owner.

    Args:
        optimizer: fleet's hybrid optimizer over a stage-1 sharding optimizer, before its first step.
        broadcast_weights: every rank holds whole weights, which their owners send round after each step.
        pipeline: the PipelineLayer, where there is one: its tied weights are summed by their owners alone.
        bucket_mb: MB (2**20 bytes) of gradients that may be in flight; not above 0: `default_bucket_bytes`.

    Raises:
        UserError: a `sharding_parallel_config` under which fleet fuses or splits parameters itself.
    """

    def __init__(self, optimizer, broadcast_weights: bool = True, pipeline: Any = None, bucket_mb: float = 0.0):
        sharding = optimizer._inner_opt
        if type(sharding) is not DygraphShardingOptimizer or sharding.tensor_fusion or sharding.comm_overlap:
            raise UserError(
                "--sharding stage2 cannot be combined with split_param, enable_stage1_tensor_fusion or enable_stage1_overlap "
                "in --sharding_parallel_config: they lay gradients out for stage 1. Leave the words out, or use stage1."
            )
        rebalance(sharding)
        self._sharding = sharding
        self.group = sharding._hcg.get_sharding_parallel_group()
        self.rank = sharding._hcg.get_sharding_parallel_rank()
        self.parameters = [p for p in sharding._origin_parameter_list if p.trainable]
        self._late = [p for p in self.parameters if getattr(p, "sequence_parallel", False)]
        self._order = SameOrder(self.group, self.parameters)
        limit = int(bucket_mb * 2**20) if bucket_mb > 0 else default_bucket_bytes(self.parameters)
        self._buckets = GradientBuckets(self.group, self.rank, self.owner, limit, self._order)
        self._in_backward = False
        self._handed_over = False
        late = {p.name for p in self._late}
        for parameter in self.parameters:
            if parameter.name not in late:
                parameter._register_backward_hook(self._hook(parameter))
        self._pipeline = pipeline
        if pipeline is not None:
            # Called when the micro batches are through: `_finish_step` does it, on the owners.
            pipeline.allreduce_shared_weight_gradients = _later
        sharding.reduce_gradients = self._finish_step
        sharding._sharding_sync_parameters = self._broadcast_parameters if broadcast_weights else _keep_parameters

    def owner(self, parameter) -> int:
        """The rank in the sharding group that updates this parameter and keeps its gradient and optimizer state."""
        return self._sharding._param2rank[parameter.name]

    @property
    def sums(self) -> dict[str, paddle.Tensor]:
        """By parameter name, what this rank owns of the gradients of the step's micro-batches so far."""
        return self._buckets.sums

    def hand_over(self) -> None:
        """After the last backward pass of a step: give the owned parameters their gradients, the means over the group.

        The optimizer's step does it too; call it before that where something reads gradients earlier (the loss scaler, the
        reduction over data-parallel ranks).
        """
        self._buckets.hand_over(self._sharding._rank2params[self.rank])
        self._handed_over = True

    def _hook(self, parameter):
        def take(*_):
            if self._handed_over:
                raise RuntimeError(
                    "a backward pass after hand_over(): call it after the last one before the optimizer's step"
                )
            if not self._in_backward:
                self._in_backward = True
                core.eager._add_backward_final_hook(self._end_backward)
            self._buckets.add(parameter)

        return take

    def _end_backward(self) -> None:
        """Called once by Paddle's engine, after a backward pass or the recomputed part of one that has just ended."""
        self._in_backward = False
        self._buckets.send_all()

    @paddle.no_grad()
    def _finish_step(self, parameters: Iterable, hcg) -> None:
        """In place of stage 1's reduction: reduce what had to wait; the owners' parameters get their gradients."""
        for parameter in self._late:
            self._buckets.add(parameter)
        self._buckets.send_all()
        self.hand_over()
        self._order.end_of_step()
        self._handed_over = False
        if self._pipeline is not None and self.rank == TIED_OWNER:
            type(self._pipeline).allreduce_shared_weight_gradients(self._pipeline)

    @paddle.no_grad()
    def _broadcast_parameters(self) -> None:
        """In place of stage 1's, which looks for a gradient to know what was updated; ours are freed."""
        tasks = [
            dist.broadcast(parameter, src=self.group.ranks[rank], group=self.group, sync_op=False)
            for rank, parameters in self._sharding._rank2params.items()
            for parameter in parameters
            if parameter.trainable
        ]
        for task in tasks:
            task.wait()


def default_bucket_bytes(parameters: Iterable[Any]) -> int:
    """The limit of bytes in flight: a bucket holds several matrices of average size, so that few collectives are needed.

    For LLaMA-2 7B with float32 gradients: buckets of 455 MiB, 1.8 GiB in flight.
    """
    sizes = [p.size * (4 if hasattr(p, "main_grad") else p.element_size()) for p in parameters if p.ndim > 1]
    mean = sum(sizes) // max(len(sizes), 1)
    return min(max(PARTS * MATRICES_IN_A_BUCKET * mean, LEAST_LIMIT), LARGEST_LIMIT)


def _later() -> None:
    """Tied weights are not summed yet."""


def _keep_parameters() -> None:
    """Each owner keeps what it updated to itself."""
