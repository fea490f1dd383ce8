"""`fused_ln.fused_rms_norm`, which PaddleNLP's models call if `use_fused_rms_norm` is set.

Importing the module (with Paddle) and computing always succeed. The norm uses this package's own operator (csrc/, for
CPU and CUDA, forward and backward), else Paddle's fused operator, else Paddle's plain operations. The log "fused_ln"
reports once which one is used, and why.

A program written by `paddle.jit.save` refers to the operator by its name. `import fused_ln` before `paddle.jit.load`
registers the operator if its library is already built; `fused_ln.why_not("cpu")` (or "gpu") also builds it, and returns
the reason if that fails. Loading such a program without the operator aborts the process (Paddle 3.3.1).
"""

from __future__ import annotations

import logging
import os
from functools import cache
from pathlib import Path

import paddle

from fused_ln import binding, fallback

try:  # to_static records the operators of a function with this decorator and does not translate its Python
    from paddle.jit.marker import unified
except ImportError:  # Paddle before 3.2
    unified = paddle.jit.not_to_static

__all__ = ["fused_rms_norm", "why_not"]

_DTYPES = (paddle.float32, paddle.float16, paddle.bfloat16)
_ROUNDINGS = {"fp32": 0, "llama": 1}  # rms_norm.h: PLLM_ROUND_*
_MAX_HIDDEN = 65536  # rms_norm.h: PLLM_RMS_NORM_MAX_HIDDEN
_log = logging.getLogger("fused_ln")


@unified
def fused_rms_norm(
    x: paddle.Tensor, weight: paddle.Tensor, epsilon: float, rounding: str = "fp32"
) -> list[paddle.Tensor]:
    """Compute y = x / sqrt(mean(x^2) + epsilon) * weight over the last axis (Zhang and Sennrich 2019, equation 4).

    The arithmetic is fp32, or fp64 if x or weight is fp64.

    Args:
        x: Input [..., hidden], fp32, fp16, bf16 or fp64.
        weight: Weight [hidden], of the type of x or another one of these.
        epsilon: Number added to the mean of the squares.
        rounding: "fp32" to round y only; "llama" to also round x / rms to the type of the weight before the
            multiplication, as LLaMA's unfused code does.

    Returns:
        y, with the shape of x and the type of weight, as from PaddleNLP's own fused_ln and its unfused LLaMA; and the
        inverse root mean squares [...] in fp32 (fp64 for fp64), which have no gradient.

    Raises:
        ValueError: If the rounding is unknown, or the shapes do not match.
        TypeError: If a type is not supported.
    """
    _check(x, weight, rounding)
    if weight.dtype not in (paddle.float16, paddle.bfloat16):
        rounding = "fp32"  # the two are equal for other types
    device = _device_of(x)
    reason = _why_not_for(x, weight, rounding) or why_not(device)
    if not reason:
        _report(device, "operator of fused_ln", "")
        y, invvar = _run_operator(x, weight, epsilon, rounding)
    else:
        used, y, invvar = fallback.fused_rms_norm(x, weight, epsilon, rounding, device)
        _report(device, used, reason)
    invvar.stop_gradient = True
    return [y, invvar]


def why_not(device: str | None = None) -> str:
    """Build the operator if necessary, run it once, and return why it cannot be used on a device; "" if it can.

    Args:
        device: "cpu" or "gpu"; None: Paddle's current device.
    """
    device = device or paddle.device.get_device().split(":")[0]
    if device not in ("cpu", "gpu"):
        return f"it has no kernels for {device}"
    if not paddle.framework.in_dynamic_or_pir_mode():
        return "it does not support the old static graph (set FLAGS_enable_pir_api=1)"
    path, reason = _library()
    reason = reason or (binding.why_no_cuda(path) if device == "gpu" else "")
    # While a program is recorded the operator cannot be run; the next call in dynamic mode does that.
    return reason or (_why_not_running(device) if paddle.in_dynamic_mode() else "")


def _run_operator(
    x: paddle.Tensor, weight: paddle.Tensor, epsilon: float, rounding: str
) -> tuple[paddle.Tensor, paddle.Tensor]:
    dtype = weight.dtype
    if x.dtype != dtype:
        x, weight = x.astype("float32"), weight.astype("float32")
    attributes = (float(epsilon), _ROUNDINGS[rounding], not weight.stop_gradient)
    y, invvar = paddle._C_ops._run_custom_op("pllm_rms_norm", x, weight, *attributes)
    return y if y.dtype == dtype else y.astype(dtype), invvar


def _check(x: paddle.Tensor, weight: paddle.Tensor, rounding: str) -> None:
    if rounding not in _ROUNDINGS:
        raise ValueError(f"RMSNorm: rounding={rounding!r} is unknown. Use one of {', '.join(_ROUNDINGS)}.")
    for tensor in (x, weight):
        if tensor.dtype not in (*_DTYPES, paddle.float64):
            raise TypeError(f"RMSNorm: {tensor.dtype} is not supported. Use fp32, fp16, bf16 or fp64.")
    matches = len(weight.shape) == 1 and len(x.shape) and weight.shape[0] > 0 and x.shape[-1] in (weight.shape[0], -1)
    if not matches:
        raise ValueError(
            f"RMSNorm: the shapes do not match: x has {list(x.shape)}, weight has {list(weight.shape)}. Use x "
            "[..., hidden] and weight [hidden], with a hidden size of 1 or more."
        )


def _why_not_for(x: paddle.Tensor, weight: paddle.Tensor, rounding: str) -> str:
    """Return why the operator does not support these tensors on any device; "" if it does."""
    if weight.shape[0] > _MAX_HIDDEN:
        return f"its maximum hidden size is {_MAX_HIDDEN}"
    if paddle.float64 in (x.dtype, weight.dtype):
        return "it does not support fp64"
    if x.dtype != weight.dtype and rounding == "llama":
        return "it supports LLaMA's rounding only if x and weight have the same type"
    return ""


@cache
def _library() -> tuple[Path, str]:
    """Return the operator's library, built if necessary, and why it cannot be used; "" if it can."""
    try:
        path = binding.library(_log_line)
    except binding.BuildError as error:
        return Path(), str(error)
    return path, _register(path)


@cache
def _register(path: Path) -> str:
    """Register the operators of a library with Paddle, and return why that fails; "" if it succeeds."""
    from paddle.base import core
    from paddle.base.framework import OpProtoHolder

    try:
        OpProtoHolder.instance().update_op_proto(core.load_op_meta_info_and_register_op(str(path)))
    except Exception as error:  # training continues without a library of another machine or of another Paddle
        return f"it cannot be loaded: {type(error).__name__}: {str(error).strip().splitlines()[-1]}"
    return ""


@cache
def _why_not_running(device: str) -> str:
    return fallback.try_out(lambda x, weight: _run_operator(x, weight, 0.0, "fp32")[0], device)


@cache
def _report(device: str, used: str, reason: str) -> None:
    """Log once what is used and why. A slower choice is logged by every rank, since ranks may differ."""
    if not reason:
        _log_line(f"RMSNorm on the {device}: {used}", first_rank_only=True)
    else:
        _log_line(f"RMSNorm on the {device}: {used}. The operator of fused_ln is not used: {reason}")


def _log_line(line: str, first_rank_only: bool = False) -> None:
    """Log a line, also in a program that has not configured logging."""
    rank = os.environ.get("PADDLE_TRAINER_ID", "0")
    if first_rank_only and rank != "0":
        return
    if not _log.hasHandlers():
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
        _log.addHandler(handler)
        _log.setLevel(logging.INFO)
    _log.info(line if rank == "0" else f"rank {rank}: {line}")


def _device_of(x: paddle.Tensor) -> str:
    if paddle.in_dynamic_mode():
        return "cpu" if x.place.is_cpu_place() else "gpu" if x.place.is_gpu_place() else str(x.place)
    return paddle.device.get_device().split(":")[0]


_built = binding.built()
if _built is not None:
    _register(_built)
