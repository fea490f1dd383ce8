"""Replace parts of Paddle's fleet (3.3.1) that reject the CPU, or have no entry for it, although they need no GPU."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

import paddle
from paddle.autograd import PyLayerContext
from paddle.base import core
from paddle.distributed.fleet.base.topology import HybridCommunicateGroup
from paddle.distributed.fleet.layers.mpu import mp_ops
from paddle.distributed.fleet.utils import hybrid_parallel_util, tensor_fusion_helper

from paddle_llm.core.upstream import replace

CPU_ALIGNMENT_BYTES = 256
# Modules that have imported the function by name.
_USERS_OF_AVERAGE = [
    "paddle.distributed.communication.reduce",
    "paddle.distributed.fleet.meta_optimizers.dygraph_optimizer.dygraph_sharding_optimizer",
]
_USERS_OF_BROADCAST = [
    "paddle.distributed.fleet.utils.hybrid_parallel_util",
    "paddle.distributed.fleet.meta_parallel.tensor_parallel",
]


def patch_fleet() -> None:
    """Let fleet's layers, pipeline and optimizers run on CPU ranks."""
    for name in _USERS_OF_BROADCAST:
        replace(_module(name), "broadcast_input_data", broadcast_input_data, "It supports GPU and XPU only.")
    why = "ParallelEnv sets it from FLAGS_selected_gpus only; without it `device_id` raises AttributeError."
    replace(paddle.distributed.ParallelEnv, "_device_id", 0, why)
    # "tensor fusion helper now only support dict_keys(['gpu', 'npu', 'xpu']), but got device unknown"
    tensor_fusion_helper.alignment["cpu"] = CPU_ALIGNMENT_BYTES
    replace(tensor_fusion_helper, "__current_device_type__", "cpu", "It is unknown on a CPU.")
    if not hasattr(core, "nccl_version"):
        why = "CPU builds lack it; fleet calls it with every backend. Averages are built in from 2.10.0 on."
        replace(_module("paddle.base.core"), "nccl_version", lambda: 21000, why)
    for name in _USERS_OF_AVERAGE:
        why = "It is false on a CPU, and `reduce` then changes the tensors of the ranks that only send."
        replace(_module(name), "is_avg_reduce_op_supported", lambda: True, why)
    why = "It gathers along the first dimension what was split along the last one."
    replace(mp_ops.c_split_eager, "backward", staticmethod(_split_backward), why)
    # The trainer waits for the device before it divides gradients late (enable_delay_scale_loss).
    why = "It raises `device should be gpu, xpu`. On a CPU there is nothing to wait for."
    replace(paddle.device, "synchronize", lambda device=None: None, why)


def _module(name: str) -> ModuleType:
    return importlib.import_module(name)


def broadcast_input_data(hcg: HybridCommunicateGroup, *inputs: Any, **kwargs: Any) -> tuple[Any, Any]:
    """Send inputs from tensor-parallel rank 0 to its group. Paddle's function supports no CPU."""
    place = paddle.CPUPlace()
    nested = hybrid_parallel_util._broadcast_nested_data
    return (
        nested(hcg, "cpu", place, inputs) if inputs else inputs,
        nested(hcg, "cpu", place, kwargs) if kwargs else kwargs,
    )


def _split_backward(ctx: PyLayerContext, dy: paddle.Tensor) -> paddle.Tensor:
    return paddle._C_ops.c_concat(dy, ctx.group.rank, ctx.nranks, ctx.group.id, True, True)
