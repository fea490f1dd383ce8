"""Faults after the backward pass: in the norm and clipping, and in updating and sending weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import paddle.distributed as dist
from paddle import Tensor
from paddle.distributed import fleet
from paddle.distributed.fleet.meta_optimizers.dygraph_optimizer import DygraphShardingOptimizer
from paddle.distributed.fleet.meta_optimizers.dygraph_optimizer.hybrid_parallel_optimizer import HybridParallelClipGrad
from paddle.optimizer import AdamW, Optimizer
from paddle.optimizer.lr import LambdaDecay, LRScheduler

from paddle_llm.parallel.zero.stage2 import ShardedGradients
from paddle_llm.rehearse.faults.registry import BACKWARD, DP2, NORMS, PP2, STAGE1, STAGE2, TP2, fault
from paddle_llm.training.trainers.pretrain_trainer import PretrainTrainer


@fault(
    quantity="grad_norm",
    unaffected=BACKWARD,
    layout=TP2,
)
def replicas_in_the_norm() -> Iterator[None]:
    """The gradient norm counts a parameter that every tensor rank holds once per rank."""
    reduce_sums = HybridParallelClipGrad._global_norm

    def reduce_all(self: HybridParallelClipGrad, split_sum: Tensor, replicated_sum: Tensor) -> None:
        reduce_sums(self, split_sum, replicated_sum)
        dist.all_reduce(replicated_sum, group=self._hcg.get_model_parallel_group())

    with patch.object(HybridParallelClipGrad, "_global_norm", reduce_all):
        yield


@fault(
    quantity="grad_norm",
    unaffected=BACKWARD,
    layout=PP2,
)
def norm_of_one_stage() -> Iterator[None]:
    """The gradient norm and clipping use only the parameters of the rank's own pipeline stage."""
    with _norm_without("get_pipe_parallel_world_size"):
        yield


@fault(
    quantity="grad_norm",
    unaffected=BACKWARD,
    layout=STAGE2,
)
def norm_of_one_owner() -> Iterator[None]:
    """The gradient norm and clipping use only the parameters that the sharding rank owns."""
    with _norm_without("get_sharding_parallel_world_size"):
        yield


@contextmanager
def _norm_without(degree: str) -> Iterator[None]:
    """Compute the norm as if a degree were one."""
    reduce_sums = HybridParallelClipGrad._global_norm

    def reduce_fewer(self: HybridParallelClipGrad, split_sum: Tensor, replicated_sum: Tensor) -> None:
        with patch.object(self._hcg, degree, lambda: 1):
            reduce_sums(self, split_sum, replicated_sum)

    with patch.object(HybridParallelClipGrad, "_global_norm", reduce_fewer):
        yield


@fault(
    quantity="weight",
    unaffected=BACKWARD,
    layout=STAGE1,
    tensors=r"embed_tokens\.weight$",
    others_equal=False,  # the norm counts its gradient twice, so all others are clipped too much
)
def two_owners() -> Iterator[None]:
    """Sharding: two ranks own the embedding, and the update of the one without the reduced gradient is used."""
    partition = DygraphShardingOptimizer._partition_parameters
    owners = DygraphShardingOptimizer._map_param_to_rank

    def with_a_second_owner(self: DygraphShardingOptimizer) -> dict[int, list[Tensor]]:
        parts = partition(self)
        embedding = next(p for p in self._parameter_list if p.name.startswith("embedding"))
        for parameters in parts.values():
            if not any(p is embedding for p in parameters):
                parameters.append(embedding)
        return parts

    def first_one_wins(self: DygraphShardingOptimizer) -> dict[str, int]:
        first = dict(owners(self))
        for rank in reversed(self._rank2params):
            first.update((p.name, rank) for p in self._rank2params[rank])
        return first

    with (
        patch.object(DygraphShardingOptimizer, "_partition_parameters", with_a_second_owner),
        patch.object(DygraphShardingOptimizer, "_map_param_to_rank", first_one_wins),
    ):
        yield


@fault(
    quantity="weight",
    unaffected=BACKWARD,
    layout=STAGE2,
    tensors=r"embed_tokens\.weight$",
)
def stale_parameter() -> Iterator[None]:
    """Sharding stage 2: the owner of the embedding does not send it to the other ranks after the step."""
    broadcast = ShardedGradients._broadcast_parameters

    def broadcast_others(self: ShardedGradients) -> None:
        others = {
            rank: [p for p in parameters if not p.name.startswith("embedding")]
            for rank, parameters in self._sharding._rank2params.items()
        }
        with patch.object(self._sharding, "_rank2params", others):
            broadcast(self)

    with patch.object(ShardedGradients, "_broadcast_parameters", broadcast_others):
        yield


@fault(
    quantity="weight",
    unaffected=BACKWARD,
    layout=DP2,
    tensors=NORMS,
)
def decayed_norms() -> Iterator[None]:
    """Weight decay is applied to norms, too, in this layout only."""
    create = PretrainTrainer.create_optimizer

    def create_and_decay_all(self: PretrainTrainer, lr_scheduler: LRScheduler | None = None) -> Optimizer:
        optimizer = create(self, lr_scheduler)
        optimizer._apply_decay_param_fun = None
        return optimizer

    with patch.object(PretrainTrainer, "create_optimizer", create_and_decay_all):
        yield


@fault(
    quantity="weight",
    unaffected=(*BACKWARD, "grad_norm", "moment1", "moment2"),
    layout=PP2,
    tensors=".",
)
def schedule_twice() -> Iterator[None]:
    """The learning-rate schedule advances two steps per optimizer step."""
    step = LambdaDecay.step

    def step_twice(self: LambdaDecay, epoch: int | None = None) -> None:
        step(self, epoch)
        step(self, epoch)

    with patch.object(LambdaDecay, "step", step_twice):
        yield


@fault(
    quantity="moment1",
    unaffected=(*BACKWARD, "grad_norm", "weight", "moment2"),
    layout=TP2,
    tensors=".",
)
def forgotten_moments() -> Iterator[None]:
    """The second tensor rank resets the first moments of its shards."""
    update = AdamW._append_optimize_op

    def update_and_forget(self: AdamW, block: Any, param_and_grad: tuple[Tensor, Tensor]) -> Any:
        result = update(self, block, param_and_grad)
        rank = fleet.get_hybrid_communicate_group().get_model_parallel_rank()
        if param_and_grad[0].is_distributed and rank == 1:
            self._get_accumulator("moment1", param_and_grad[0]).zero_()
        return result

    with patch.object(AdamW, "_append_optimize_op", update_and_forget):
        yield
