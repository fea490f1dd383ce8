"""Faults in the gradients: wrong terms, wrong groups of ranks, wrong divisors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import paddle.distributed as dist
import paddle.nn.functional as F
from paddle import Tensor
from paddle.distributed import fleet
from paddle.distributed.collective import _c_identity
from paddle.distributed.fleet.base.topology import HybridCommunicateGroup
from paddle.distributed.fleet.layers.mpu.mp_ops import c_identity_eager
from paddle.distributed.fleet.meta_optimizers.dygraph_optimizer import DygraphShardingOptimizer
from paddle.distributed.fleet.meta_parallel import PipelineLayer, PipelineParallel
from paddle.distributed.fleet.utils.hybrid_parallel_util import fused_allreduce_gradients_with_group
from paddle.nn import Linear
from paddlenlp.trainer import trainer

from paddle_llm.config.layout import Layout
from paddle_llm.models.patches import llama
from paddle_llm.parallel.mesh import Axis
from paddle_llm.peft.methods import parallel_product
from paddle_llm.rehearse.faults.registry import FORWARD, NORMS, PP2, SP2, STAGE1, TP2, fault


@fault(
    quantity="gradient",
    unaffected=FORWARD,
    layout=TP2,
    tensors=".",
)
def dropped_all_reduce() -> Iterator[None]:
    """Tensor parallel: the gradient of a column-parallel layer's input is not summed over the ranks."""
    with patch.object(c_identity_eager, "backward", staticmethod(lambda ctx, dy: dy)):
        yield


@fault(
    quantity="gradient",
    unaffected=FORWARD,
    layout=PP2,
    tensors=".",
)
def last_micro_batch_only() -> Iterator[None]:
    """Pipeline: each micro-batch's backward pass starts with empty gradients, so only those of the last one remain."""
    backward = PipelineParallel._backward_step

    def clear_and_run_backward(self: PipelineParallel, *args: Any, **kwargs: Any) -> Any:
        self._layers.clear_gradients()
        return backward(self, *args, **kwargs)

    with patch.object(PipelineParallel, "_backward_step", clear_and_run_backward):
        yield


@fault(
    quantity="gradient",
    unaffected=FORWARD,
    layout=Layout(data=2, tensor=2),
    tensors=".",
)
def wrong_average() -> Iterator[None]:
    """Gradients of data-parallel ranks are divided by the number of all ranks, tensor-parallel ones included."""

    def average_over_the_world(parameters: list[Tensor], hcg: HybridCommunicateGroup) -> None:
        group = hcg.get_data_parallel_group()
        fused_allreduce_gradients_with_group(parameters, group, scale=1.0 / dist.get_world_size())

    with patch.object(trainer, "fused_allreduce_gradients", average_over_the_world):
        yield


@fault(
    quantity="gradient",
    unaffected=FORWARD,
    layout=SP2,
    tensors=NORMS,
)
def sequence_parallel_norms() -> Iterator[None]:
    """Sequence parallel: each tensor rank uses the gradients of norms from its own part of the sequence only."""
    with patch.object(trainer, "register_sequence_parallel_allreduce_hooks", lambda *args: None):
        yield


@fault(
    quantity="gradient",
    unaffected=FORWARD,
    layout=TP2,
    tensors=r"[kv]_proj\.weight$",
)
def replicated_key_values() -> Iterator[None]:
    """Key-value heads that every tensor rank holds: each rank uses the gradient from its own query heads only."""

    def project(linear: Linear, hidden: Tensor) -> Tensor:
        group = fleet.get_hybrid_communicate_group().get_model_parallel_group()
        return F.linear(_c_identity(hidden, group=group), linear.weight)

    with patch.object(llama, "_shared_projection", project):
        yield


@fault(
    quantity="gradient",
    unaffected=FORWARD,
    layout=PP2,
    tensors=r"embed_tokens\.weight$",
)
def tied_on_one_stage() -> Iterator[None]:
    """Weights tied between the first and last stage: the sum of their gradients is applied on the first stage only."""
    summed = PipelineLayer.allreduce_shared_weight_gradients

    def sum_and_keep_own(self: PipelineLayer) -> None:
        shared = [getattr(comm["layer"], name) for comm in self.shared_comm.values() for name in comm["weight_attr"]]
        own = [parameter.grad.clone() for parameter in shared]
        summed(self)
        for parameter, gradient in zip(shared, own, strict=True):
            if not parameter.is_firstly_shared:
                parameter.grad.set_value(gradient)

    with patch.object(PipelineLayer, "allreduce_shared_weight_gradients", sum_and_keep_own):
        yield


@fault(
    quantity="gradient",
    unaffected=FORWARD,
    layout=STAGE1,
    tensors=".",
    step=2,
)
def left_over_gradients() -> Iterator[None]:
    """Gradients are not cleared after a step and take part in the next one."""
    with patch.object(DygraphShardingOptimizer, "clear_grad", lambda self, set_to_zero=True: None):
        yield


@fault(
    quantity="gradient",
    unaffected=FORWARD,
    layout=TP2,
    tensors=r"lora_A$",
    others_equal=False,  # the gradient that is passed to earlier layers is incomplete, too
    step=2,  # B starts as zeros, so the gradient of A is zero in the first step
    entry="finetune",
)
def lora_replicas() -> Iterator[None]:
    """LoRA on a column-parallel layer: each tensor rank uses the gradient of A from its own outputs only."""
    summed = parallel_product.summed_gradient

    def summed_for_parameters(tensor: Tensor, axis: Axis, is_needed: bool = True) -> Tensor:
        return summed(tensor, axis, is_needed and tensor.is_leaf)

    with patch.object(parallel_product, "summed_gradient", summed_for_parameters):
        yield
