"""`fused_ln.fused_rms_norm`, as PaddleNLP's models call it when `use_fused_rms_norm` is set.

It always imports and always computes: by this package's own operator (csrc/, CPU and CUDA, forward and backward), else by
Paddle's fused one where there is one, else by Paddle's plain operations. Which, and why, is said once in the log "fused_ln".
"""

from __future__ import annotations

import logging
import os
from functools import cache
from typing import Any

import paddle
from paddle.jit.marker import unified

from fused_ln import binding

__all__ = ["fused_rms_norm", "why_not"]

_TYPES = (paddle.float32, paddle.float16, paddle.bfloat16)
_ROUNDINGS = {"fp32": 0, "llama": 1}  # rms_norm.h: PLLM_ROUND_*
_log = logging.getLogger("fused_ln")


@unified  # for to_static: its operators are recorded, its Python is not translated
def fused_rms_norm(x: Any, weight: Any, epsilon: float, rounding: str = "fp32") -> list[Any]:
    """y = x / sqrt(mean(x^2) + epsilon) * weight over the last axis (Zhang and Sennrich 2019, eq. 4), in fp32 to the end.

    Args:
        x: [..., hidden], fp32, fp16 or bf16.
        weight: [hidden], fp32 or of x's type.
        rounding: "fp32", or "llama": x / rms is rounded to x's type before the weight, as LLaMA's unfused code does.

    Returns:
        [y like x, the inverse root mean squares [...] in fp32 (without a gradient)].
    """
    if weight.dtype != x.dtype and weight.dtype != paddle.float32 and x.dtype == paddle.float32:
        # Unfused models give what the weight's type is.
        y, invvar = fused_rms_norm(x, weight.astype("float32"), epsilon, rounding)
        return [y.astype(weight.dtype), invvar]
    device = _device_of(x)
    if x.dtype in _TYPES and weight.dtype in (paddle.float32, x.dtype) and _own_operator(device):
        attributes = (float(epsilon), _ROUNDINGS[rounding], not weight.stop_gradient)
        return list(paddle._C_ops._run_custom_op("pllm_rms_norm", x, weight, *attributes))
    if weight.dtype == x.dtype and device == "gpu" and _paddles_runs():
        return list(paddle.nn.functional.rms_norm(x, weight.shape, weight, epsilon))
    if weight.dtype == x.dtype == paddle.float32 and device == "cpu" and not _wants_gradient(x, weight):
        y = paddle.incubate.nn.functional.fused_rms_norm(x, weight, None, epsilon, x.ndim - 1)[0]
        return [y, _inverse_rms(x, epsilon)]
    return _plain(x, weight, epsilon)


def why_not(device: str | None = None) -> str:
    """Why this package's own operator cannot be had on a device ("cpu", "gpu"); "" where it can. Builds it if need be."""
    device = device or paddle.device.get_device().split(":")[0]
    if device not in ("cpu", "gpu"):
        return f"it has no kernels for {device}"
    if not paddle.framework.in_dynamic_or_pir_mode():
        return "the old static graph is not offered; FLAGS_enable_pir_api=1 gives the new one"
    return _why_not_loaded() or ("" if device == "cpu" else _why_no_cuda())


@cache
def _why_not_loaded() -> str:
    from paddle.base import core
    from paddle.base.framework import OpProtoHolder

    try:
        path = binding.library(_log_line)
        OpProtoHolder.instance().update_op_proto(core.load_op_meta_info_and_register_op(str(path)))
    except binding.BuildError as error:
        return str(error)
    except Exception as error:  # a library of another machine, a Paddle that has changed: training goes on without it
        return f"it cannot be loaded: {type(error).__name__}: {str(error).strip().splitlines()[-1]}"
    return ""


@cache
def _why_no_cuda() -> str:
    return "" if binding.has_cuda() else "nvcc was not found when it was built (set NVCC, or put it on the PATH)"


def _own_operator(device: str) -> bool:
    reason = why_not(device)
    _tell(device, reason)
    return not reason


@cache
def _tell(device: str, reason: str) -> None:
    """Once: which it is, and why."""
    if not reason:
        _log_line(f"RMSNorm on the {device} by its own fused operator")
    else:
        paddles = "Paddle's fused operator" if device == "gpu" and _paddles_runs() else "Paddle's plain operations"
        _log_line(f"RMSNorm on the {device} by {paddles}: {reason}")


def _log_line(line: str) -> None:
    """On the first rank; seen also where nobody has set up logging."""
    if os.environ.get("PADDLE_TRAINER_ID", "0") != "0":
        return
    if not _log.hasHandlers():
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
        _log.addHandler(handler)
        _log.setLevel(logging.INFO)
    _log.info(line)


def _device_of(x: Any) -> str:
    if paddle.in_dynamic_mode():
        return "cpu" if x.place.is_cpu_place() else "gpu" if x.place.is_gpu_place() else str(x.place)
    return paddle.device.get_device().split(":")[0]


# ---- Without the operator.


@cache
def _paddles_runs() -> bool:
    """Whether Paddle's own fused RMSNorm runs on this GPU, forward and backward; tried out. On a CPU 3.3.1 has none but for
    fp32 without a gradient."""
    if not paddle.in_dynamic_mode():
        return False
    x, weight = paddle.ones([1, 8]), paddle.ones([8])
    x.stop_gradient = False
    try:
        with paddle.enable_grad():
            paddle.nn.functional.rms_norm(x, [8], weight, 1e-6)[0].backward()
    except Exception:  # a Paddle that lacks it says so in many ways
        return False
    return True


def _wants_gradient(*tensors: Any) -> bool:
    return paddle.is_grad_enabled() and not all(tensor.stop_gradient for tensor in tensors)


def _inverse_rms(x: Any, epsilon: float) -> Any:
    return paddle.rsqrt(x.astype("float32").square().mean(-1) + epsilon)


def _plain(x: Any, weight: Any, epsilon: float) -> list[Any]:
    with paddle.amp.auto_cast(False):
        invvar = _inverse_rms(x, epsilon)
        y = x.astype("float32") * invvar.unsqueeze(-1) * weight.astype("float32")
        return [y.astype(x.dtype), invvar]
