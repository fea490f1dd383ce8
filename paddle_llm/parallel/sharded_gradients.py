"""Sharding stage 2 on top of fleet's stage 1, in every composition: with data, tensor and pipeline parallelism.

Fleet's stage-1 optimizer (paddle 3.3.1, DygraphShardingOptimizer) gives every parameter an owner among the sharding
ranks, who alone keeps its optimizer state. Here the gradients follow: as soon as a micro batch has produced one, it is
summed on its owner and freed elsewhere. The owner's running sum takes part in the next micro batch's reduction, so no
second buffer is needed. (ZeRO, Rajbhandari et al. 2020, section 5.2.)

What others still have to add to a gradient after the backward pass waits for the end of the step: weights tied between
pipeline stages and the parameters whose gradients sequence parallelism sums over tensor ranks.
"""

from __future__ import annotations

from collections.abc import Iterable

import paddle
import paddle.distributed as dist
from paddle.distributed.fleet.meta_optimizers.dygraph_optimizer import DygraphShardingOptimizer

from paddle_llm.config.errors import UserError


class ShardedGradients:
    """Keeps each gradient on the sharding rank that owns its parameter.

    Attributes:
        group, rank: the sharding group, and this process's rank in it.
        parameters: the trainable parameters of the optimizer, of every owner.

    Args:
        optimizer: fleet's hybrid optimizer over a stage-1 sharding optimizer.
        broadcast_weights: every rank holds whole weights, which their owners send round after each step.

    Raises:
        UserError: a `sharding_parallel_config` under which fleet fuses or splits parameters itself.
    """

    def __init__(self, optimizer, broadcast_weights: bool = True):
        sharding = optimizer._inner_opt
        if type(sharding) is not DygraphShardingOptimizer or sharding.tensor_fusion or sharding.comm_overlap:
            raise UserError(
                "--sharding stage2 cannot be combined with split_param, enable_stage1_tensor_fusion or enable_stage1_overlap "
                "in --sharding_parallel_config: they lay gradients out for stage 1. Leave the words out, or use stage1."
            )
        self._sharding = sharding
        self.group = sharding._hcg.get_sharding_parallel_group()
        self.rank = sharding._hcg.get_sharding_parallel_rank()
        self.parameters = [p for p in sharding._origin_parameter_list if p.trainable]
        self._late = [p for p in self.parameters if _changed_after_backward(p)]
        late = {p.name for p in self._late}
        for parameter in self.parameters:
            if parameter.name not in late:
                parameter._register_backward_hook(self._hook(parameter))
        sharding.reduce_gradients = self._finish_step
        sharding._sharding_sync_parameters = self._broadcast_parameters if broadcast_weights else _keep_parameters

    def owner(self, parameter) -> int:
        """The rank in the sharding group that updates this parameter and keeps its gradient and optimizer state."""
        return self._sharding._param2rank[parameter.name]

    def _hook(self, parameter):
        def reduce_now(*_):
            self._to_owner(parameter)

        return reduce_now

    @paddle.no_grad()
    def _to_owner(self, parameter) -> None:
        """Sum this gradient over the sharding group on its owner; free it on the others."""
        gradient = _gradient(parameter)
        if gradient is None:
            return
        owner = self.owner(parameter)
        dist.reduce(gradient, dst=self.group.ranks[owner], group=self.group, sync_op=True)
        if owner != self.rank:
            _free(parameter)

    @paddle.no_grad()
    def _finish_step(self, parameters: Iterable, hcg) -> None:
        """In place of stage 1's reduction: what had to wait, then the mean over the sharding ranks, on the owners."""
        for parameter in self._late:
            self._to_owner(parameter)
        for parameter in self._sharding._rank2params[self.rank]:
            gradient = _gradient(parameter)
            if gradient is not None:
                gradient.scale_(1.0 / self.group.nranks)

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


def _keep_parameters() -> None:
    """Each owner keeps what it updated to itself."""


def held_gradient_elements(model) -> int:
    """Elements of all gradients that this rank holds at this moment."""
    return sum(_gradient(p).size for p in model.parameters() if p.trainable and _gradient(p) is not None)


def _changed_after_backward(parameter) -> bool:
    return hasattr(parameter, "is_firstly_shared") or getattr(parameter, "sequence_parallel", False)


def _gradient(parameter):
    main_grad = getattr(parameter, "main_grad", None)
    if main_grad is not None:
        return main_grad
    gradient = parameter._grad_ivar()
    return gradient if gradient is not None and gradient._is_initialized() else None


def _free(parameter) -> None:
    if getattr(parameter, "main_grad", None) is not None:
        parameter.main_grad._clear()
        parameter.main_grad = None
    else:
        parameter.clear_gradient(False)
