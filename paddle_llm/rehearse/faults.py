"""Faults injected on purpose: a test of the oracle. Each breaks one piece of real code in the ranks of a layout.

What is replaced are methods of fleet and of our own parallel, model and training code, never a record: a fault must go
the way that a real one would go. Most of them have happened, in Paddle or in another trainer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from unittest.mock import patch

from paddle_llm.config.layout import Layout


@dataclass(frozen=True)
class Fault:
    """One way to be wrong.

    Attributes:
        name: for `Case.fault`.
        imitates: what goes wrong, in a sentence.
        shows: the quantity in which it must be seen at `step`.
        spares: quantities that it leaves right at that step; a loss that looks fine is what makes a bug silent.
        tensors: regular expression; a tensor that matches is wrong in `shows` at that step; "" for scalars.
        alone: no other tensor is.
        layout: the smallest that shows it.
        patched: breaks the code for as long as the context lasts; entered in each rank before the trainer is built.
        step: the first at which anything is seen.
    """

    name: str
    imitates: str
    shows: str
    spares: tuple[str, ...]
    tensors: str
    layout: Layout
    patched: Callable[[], AbstractContextManager]
    alone: bool = True
    step: int = 1


FAULTS: dict[str, Fault] = {}

_DP2, _TP2, _PP2 = Layout(data=2), Layout(tensor=2), Layout(pipeline=2)
_SP2 = Layout(tensor=2, sequence_parallel=True)
_STAGE1, _STAGE2 = Layout(sharding=2, sharding_stage=1), Layout(sharding=2, sharding_stage=2)
# What is right in a step whose gradients are wrong, and in one whose gradients are right but wrongly used.
_FORWARD = ("loss",)
_BACKWARD = ("loss", "gradient")
_NORMS = r"norm\.weight$"


def _fault(
    imitates: str,
    *,
    shows: str,
    spares: tuple[str, ...],
    layout: Layout,
    tensors: str = "",
    alone: bool = True,
    step: int = 1,
):
    """Enter a generator into FAULTS: what it does before its yield breaks the code."""

    def enter(function: Callable[[], Iterator[None]]) -> Callable[[], Iterator[None]]:
        name = function.__name__
        FAULTS[name] = Fault(
            name, imitates, shows, spares, tensors, layout, contextmanager(function), alone=alone, step=step
        )
        return function

    return enter


# --- gradients -------------------------------------------------------------------------------------------------------


@_fault(
    "Tensor parallel: the gradient of a column-parallel layer's input is not summed over the ranks.",
    shows="gradient",
    spares=_FORWARD,
    layout=_TP2,
    tensors=".",
)
def dropped_all_reduce() -> Iterator[None]:
    from paddle.distributed.fleet.layers.mpu.mp_ops import c_identity_eager

    with patch.object(c_identity_eager, "backward", staticmethod(lambda ctx, dy: dy)):
        yield


@_fault(
    "Pipeline: each micro batch's backward pass begins with empty gradients, so those of the last one are all there is.",
    shows="gradient",
    spares=_FORWARD,
    layout=_PP2,
    tensors=".",
)
def last_micro_batch_only() -> Iterator[None]:
    from paddle.distributed.fleet.meta_parallel import PipelineParallel

    backward = PipelineParallel._backward_step

    def clear_and_go_backward(self, *args, **kwargs):
        self._layers.clear_gradients()
        return backward(self, *args, **kwargs)

    with patch.object(PipelineParallel, "_backward_step", clear_and_go_backward):
        yield


@_fault(
    "Gradients of data-parallel ranks are divided by the number of all ranks, tensor-parallel ones included.",
    shows="gradient",
    spares=_FORWARD,
    layout=Layout(data=2, tensor=2),
    tensors=".",
)
def wrong_average() -> Iterator[None]:
    import paddle.distributed as dist
    from paddle.distributed.fleet.utils.hybrid_parallel_util import fused_allreduce_gradients_with_group
    from paddlenlp.trainer import trainer

    def average_over_the_world(parameters, hcg):
        group = hcg.get_data_parallel_group()
        fused_allreduce_gradients_with_group(parameters, group, scale=1.0 / dist.get_world_size())

    with patch.object(trainer, "fused_allreduce_gradients", average_over_the_world):
        yield


@_fault(
    "Sequence parallel: each tensor rank keeps the gradients of norms that its own part of the sequence gives.",
    shows="gradient",
    spares=_FORWARD,
    layout=_SP2,
    tensors=_NORMS,
)
def sequence_parallel_norms() -> Iterator[None]:
    from paddlenlp.trainer import trainer

    with patch.object(trainer, "register_sequence_parallel_allreduce_hooks", lambda *args: None):
        yield


@_fault(
    "Key-value heads that every tensor rank holds: each keeps the gradient that its own query heads give.",
    shows="gradient",
    spares=_FORWARD,
    layout=_TP2,
    tensors=r"[kv]_proj\.weight$",
)
def replicated_key_values() -> Iterator[None]:
    import paddle.nn.functional as F
    from paddle.distributed import fleet
    from paddle.distributed.collective import _c_identity

    from paddle_llm.models import corrections

    def project(linear, hidden):
        group = fleet.get_hybrid_communicate_group().get_model_parallel_group()
        return F.linear(_c_identity(hidden, group=group), linear.weight)

    with patch.object(corrections, "_shared_projection", project):
        yield


@_fault(
    "Weights tied between the first and the last stage: the sum of their gradients is applied on the first alone.",
    shows="gradient",
    spares=_FORWARD,
    layout=_PP2,
    tensors=r"embed_tokens\.weight$",
)
def tied_on_one_stage() -> Iterator[None]:
    from paddle.distributed.fleet.meta_parallel import PipelineLayer

    summed = PipelineLayer.allreduce_shared_weight_gradients

    def sum_and_keep_own(self):
        shared = [getattr(comm["layer"], name) for comm in self.shared_comm.values() for name in comm["weight_attr"]]
        own = [parameter.grad.clone() for parameter in shared]
        summed(self)
        for parameter, gradient in zip(shared, own, strict=True):
            if not parameter.is_firstly_shared:
                parameter.grad.set_value(gradient)

    with patch.object(PipelineLayer, "allreduce_shared_weight_gradients", sum_and_keep_own):
        yield


@_fault(
    "Gradients are not cleared after a step and take part in the next one.",
    shows="gradient",
    spares=_FORWARD,
    layout=_STAGE1,
    tensors=".",
    step=2,
)
def left_over_gradients() -> Iterator[None]:
    from paddle.distributed.fleet.meta_optimizers.dygraph_optimizer import DygraphShardingOptimizer

    with patch.object(DygraphShardingOptimizer, "clear_grad", lambda self, set_to_zero=True: None):
        yield


# --- the norm --------------------------------------------------------------------------------------------------------


@_fault(
    "The gradient norm counts a parameter that every tensor rank holds once for each of them.",
    shows="grad_norm",
    spares=_BACKWARD,
    layout=_TP2,
)
def replicas_in_the_norm() -> Iterator[None]:
    import paddle.distributed as dist
    from paddle.distributed.fleet.meta_optimizers.dygraph_optimizer.hybrid_parallel_optimizer import (
        HybridParallelClipGrad,
    )

    reduce_sums = HybridParallelClipGrad._global_norm

    def reduce_all(self, split_sum, replicated_sum):
        reduce_sums(self, split_sum, replicated_sum)
        dist.all_reduce(replicated_sum, group=self._hcg.get_model_parallel_group())

    with patch.object(HybridParallelClipGrad, "_global_norm", reduce_all):
        yield


@_fault(
    "The gradient norm, and with it clipping, is that of each pipeline stage's own parameters.",
    shows="grad_norm",
    spares=_BACKWARD,
    layout=_PP2,
)
def norm_of_one_stage() -> Iterator[None]:
    with _norm_without("get_pipe_parallel_world_size"):
        yield


@_fault(
    "The gradient norm, and with it clipping, is that of the parameters that each sharding rank owns.",
    shows="grad_norm",
    spares=_BACKWARD,
    layout=_STAGE2,
)
def norm_of_one_owner() -> Iterator[None]:
    with _norm_without("get_sharding_parallel_world_size"):
        yield


@contextmanager
def _norm_without(degree: str) -> Iterator[None]:
    """The norm is computed as if this degree were one."""
    from paddle.distributed.fleet.meta_optimizers.dygraph_optimizer.hybrid_parallel_optimizer import (
        HybridParallelClipGrad,
    )

    reduce_sums = HybridParallelClipGrad._global_norm

    def reduce_fewer(self, split_sum, replicated_sum):
        with patch.object(self._hcg, degree, lambda: 1):
            reduce_sums(self, split_sum, replicated_sum)

    with patch.object(HybridParallelClipGrad, "_global_norm", reduce_fewer):
        yield


# --- the update ------------------------------------------------------------------------------------------------------


@_fault(
    "Sharding: two ranks take themselves for the owner of the embedding; the one without the reduced gradient wins.",
    shows="weight",
    spares=_BACKWARD,
    layout=_STAGE1,
    tensors=r"embed_tokens\.weight$",
    alone=False,  # the norm counts its gradient twice, so that all others are clipped too much
)
def two_owners() -> Iterator[None]:
    from paddle.distributed.fleet.meta_optimizers.dygraph_optimizer import DygraphShardingOptimizer

    partition = DygraphShardingOptimizer._partition_parameters
    owners = DygraphShardingOptimizer._map_param_to_rank

    def with_a_second_owner(self):
        parts = partition(self)
        embedding = next(p for p in self._parameter_list if p.name.startswith("embedding"))
        for parameters in parts.values():
            if not any(p is embedding for p in parameters):
                parameters.append(embedding)
        return parts

    def first_one_wins(self):
        first = dict(owners(self))
        for rank in reversed(self._rank2params):
            first.update((p.name, rank) for p in self._rank2params[rank])
        return first

    with (
        patch.object(DygraphShardingOptimizer, "_partition_parameters", with_a_second_owner),
        patch.object(DygraphShardingOptimizer, "_map_param_to_rank", first_one_wins),
    ):
        yield


@_fault(
    "Sharding stage 2: the owner of the embedding does not send it to the others after the step.",
    shows="weight",
    spares=_BACKWARD,
    layout=_STAGE2,
    tensors=r"embed_tokens\.weight$",
)
def stale_parameter() -> Iterator[None]:
    from paddle_llm.parallel.sharded_gradients import ShardedGradients

    broadcast = ShardedGradients._broadcast_parameters

    def broadcast_others(self):
        others = {
            rank: [p for p in parameters if not p.name.startswith("embedding")]
            for rank, parameters in self._sharding._rank2params.items()
        }
        with patch.object(self._sharding, "_rank2params", others):
            broadcast(self)

    with patch.object(ShardedGradients, "_broadcast_parameters", broadcast_others):
        yield


@_fault(
    "Weight decay is applied to norms as well, in this layout alone.",
    shows="weight",
    spares=_BACKWARD,
    layout=_DP2,
    tensors=_NORMS,
)
def decayed_norms() -> Iterator[None]:
    from paddle_llm.training.pretrain_trainer import PretrainTrainer

    create = PretrainTrainer.create_optimizer

    def create_and_decay_all(self, lr_scheduler=None):
        optimizer = create(self, lr_scheduler)
        optimizer._apply_decay_param_fun = None
        return optimizer

    with patch.object(PretrainTrainer, "create_optimizer", create_and_decay_all):
        yield


@_fault(
    "The output projections of attention are read with their tensor-parallel shards in the other order.",
    shows="weight",
    spares=(),
    layout=_TP2,
    tensors=r"o_proj\.weight$",
    alone=False,
)
def swapped_shards() -> Iterator[None]:
    from paddle_llm.models import init

    shard_of = init.shard_of

    def shard_of_the_other(family, name, local_shape, split, config, degree, rank):
        if name.endswith("o_proj.weight"):
            rank = degree - 1 - rank
        return shard_of(family, name, local_shape, split, config, degree, rank)

    with patch.object(init, "shard_of", shard_of_the_other):
        yield


# --- data and losses -------------------------------------------------------------------------------------------------


@_fault(
    "The first micro batch of a step is used again in place of the second.",
    shows="loss",
    spares=(),
    layout=_DP2,
)
def micro_batch_twice() -> Iterator[None]:
    from paddle_llm.data.sampler import GlobalBatchSampler

    micro_batches = GlobalBatchSampler.__iter__

    def with_a_repetition(self):
        first = None
        for index, batch in enumerate(micro_batches(self)):
            micro_step = index % self.gradient_accumulation_steps
            first = batch if micro_step == 0 else first
            yield first if micro_step == 1 else batch

    with patch.object(GlobalBatchSampler, "__iter__", with_a_repetition):
        yield


@_fault(
    "The evaluation's loss is the mean of the ranks' means, though their numbers of labels differ.",
    shows="eval_loss",
    spares=("loss", "grad_norm", "gradient", "weight", "moment1", "moment2"),
    layout=_DP2,
)
def mean_of_ranks() -> Iterator[None]:
    import paddle
    import paddle.distributed as dist

    from paddle_llm.training import evaluation, pretrain_trainer

    mean_loss = evaluation.mean_loss

    def mean_of_means(*args):
        with patch.object(dist, "get_world_size", lambda group=None: 1):
            own = mean_loss(*args)
        means: list[paddle.Tensor] = []
        dist.all_gather(means, paddle.to_tensor(own, dtype="float64"))
        return sum(float(mean) for mean in means) / len(means)

    with patch.object(pretrain_trainer, "mean_loss", mean_of_means):
        yield


@_fault(
    "The rows that pad the vocabulary to the tensor-parallel degree take part in the softmax.",
    shows="loss",
    spares=(),
    layout=_TP2,
)
def padding_in_the_softmax() -> Iterator[None]:
    from paddle_llm.models import loss

    with patch.object(loss, "real_vocab_size", lambda config: config.vocab_size):
        yield
