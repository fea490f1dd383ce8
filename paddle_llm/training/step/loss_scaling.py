"""The fp16 loss scaler of one process and of plain data parallelism, where gradients are summed in float32."""

from __future__ import annotations

from types import MethodType
from typing import Any

import numpy as np
import paddle
from paddle import _legacy_C_ops
from paddle.distributed.fleet.utils.hybrid_parallel_util import obtain_optimizer_parameters_list


def unscale_main_gradients(scaler: paddle.amp.GradScaler) -> None:
    """Make a scaler unscale and check `main_grad`, the float32 gradients of `amp_master_grad`.

    Paddle's `GradScaler._unscale` (3.3.1) reads the 16-bit gradients, which `MixPrecisionLayer` has released: the loss
    scale stays in the gradients and no overflow is found. PaddleNLP (3.0.0b4, `_wrap_amp_model`) replaces the method in
    sharded, tensor and pipeline layouts only. Fleet's `MixPrecisionScaler` needs a hybrid communicate group and cannot
    be used here.
    """
    scaler._unscale = MethodType(_unscale, scaler)


def _unscale(self: paddle.amp.GradScaler, optimizer: paddle.optimizer.Optimizer) -> None:
    if not self._enable:
        return
    parameters = obtain_optimizer_parameters_list(optimizer)
    gradients = [parameter.main_grad for parameter in parameters if parameter.main_grad is not None]
    found_inf = paddle.zeros([1], dtype="bool")
    if gradients:
        _legacy_C_ops.check_finite_and_unscale(gradients, self._scale, gradients, found_inf)
    self._found_inf = found_inf


def scaler_state(scaler: paddle.amp.GradScaler) -> dict[str, Any]:
    """Return the state of a scaler as numbers, the same on all ranks. Paddle's has the scale as an array [1]."""
    state = dict(scaler.state_dict())
    if "scale" in state:
        state["scale"] = float(np.asarray(state["scale"]).reshape(()))
    return state


def restore_scaler(scaler: paddle.amp.GradScaler, state: dict[str, Any]) -> None:
    """Continue from what `scaler_state` returned."""
    if state:
        scaler.load_state_dict({**state, "scale": np.array([state["scale"]], np.float32)})
