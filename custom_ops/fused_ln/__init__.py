"""`fused_ln.fused_rms_norm`, as PaddleNLP's models call it when `use_fused_rms_norm` is set.

It always imports (with Paddle) and always computes: by this package's own operator (csrc/, CPU and CUDA, forward and backward),
else by Paddle's fused one where there is one, else by Paddle's plain operations. Which, and why, is said once in the log
"fused_ln".

A program that `paddle.jit.save` wrote holds the operator by its name: `import fused_ln` before `paddle.jit.load` registers it
where its library is built already; `fused_ln.why_not("cpu")` (or "gpu") builds it, too, and says why if it cannot. Without it
Paddle (3.3.1) ends the process.
"""

from __future__ import annotations

import logging
import os
from functools import cache
from pathlib import Path
from typing import Any

import paddle

from fused_ln import binding, without

try:  # for to_static: its operators are recorded, its Python is not translated
    from paddle.jit.marker import unified
except ImportError:  # Paddle before 3.2
    unified = paddle.jit.not_to_static

__all__ = ["fused_rms_norm", "why_not"]

_TYPES = (paddle.float32, paddle.float16, paddle.bfloat16)
_ROUNDINGS = {"fp32": 0, "llama": 1}  # rms_norm.h: PLLM_ROUND_*
_LARGEST_HIDDEN = 65536  # rms_norm.h: PLLM_RMS_NORM_MAX_HIDDEN
_log = logging.getLogger("fused_ln")


@unified
def fused_rms_norm(x: Any, weight: Any, epsilon: float, rounding: str = "fp32") -> list[Any]:
    """y = x / sqrt(mean(x^2) + epsilon) * weight over the last axis (Zhang and Sennrich 2019, eq. 4), in fp32 to the end.

    Args:
        x: [..., hidden], fp32, fp16, bf16 or (plainly, in fp64) fp64.
        weight: [hidden], of x's type or another of these.
        rounding: "fp32", or "llama": x / rms is rounded to the weight's type before the weight, as LLaMA's unfused code does.

    Returns:
        [y like x, but of the weight's type, as from PaddleNLP's own fused_ln and its unfused LLaMA;
        the inverse root mean squares [...] in fp32 (fp64 of fp64), through which no gradient passes].

    Raises:
        ValueError: a rounding of another name, shapes that do not fit.
        TypeError: numbers that are no such floats.
    """
    _check(x, weight, rounding)
    if weight.dtype not in (paddle.float16, paddle.bfloat16):
        rounding = "fp32"  # there is nothing to round to
    device = _device_of(x)
    reason = _why_not_these(x, weight, rounding) or why_not(device)
    if not reason:
        _tell(device, "its own fused operator", "")
        y, invvar = _own(x, weight, epsilon, rounding)
    else:
        way, y, invvar = without.fused_rms_norm(x, weight, epsilon, rounding, device)
        _tell(device, way, reason)
    invvar.stop_gradient = True
    return [y, invvar]


def why_not(device: str | None = None) -> str:
    """Why this package's own operator cannot be had on a device ("cpu", "gpu"); "" where it can. Builds it if need be, and
    tries it out."""
    device = device or paddle.device.get_device().split(":")[0]
    if device not in ("cpu", "gpu"):
        return f"it has no kernels for {device}"
    if not paddle.framework.in_dynamic_or_pir_mode():
        return "the old static graph is not offered; FLAGS_enable_pir_api=1 gives the new one"
    path, reason = _library()
    reason = reason or (binding.why_no_cuda(path) if device == "gpu" else "")
    # While a program is recorded nothing can be tried; the next call in dynamic mode does.
    return reason or (_why_not_running(device) if paddle.in_dynamic_mode() else "")


def _own(x: Any, weight: Any, epsilon: float, rounding: str) -> tuple[Any, Any]:
    wanted = weight.dtype
    if x.dtype != wanted:
        x, weight = x.astype("float32"), weight.astype("float32")
    attributes = (float(epsilon), _ROUNDINGS[rounding], not weight.stop_gradient)
    y, invvar = paddle._C_ops._run_custom_op("pllm_rms_norm", x, weight, *attributes)
    return y if y.dtype == wanted else y.astype(wanted), invvar


def _check(x: Any, weight: Any, rounding: str) -> None:
    if rounding not in _ROUNDINGS:
        raise ValueError(f"RMSNorm: rounding is one of {', '.join(_ROUNDINGS)}, not {rounding!r}")
    for tensor in (x, weight):
        if tensor.dtype not in (*_TYPES, paddle.float64):
            raise TypeError(f"RMSNorm: x and weight are fp32, fp16, bf16 or fp64, not {tensor.dtype}")
    fits = len(weight.shape) == 1 and len(x.shape) and weight.shape[0] > 0 and x.shape[-1] in (weight.shape[0], -1)
    if not fits:
        raise ValueError(
            f"RMSNorm: x is [..., hidden], weight [hidden] with hidden 1 or more; x has {list(x.shape)}, "
            f"weight has {list(weight.shape)}"
        )


def _why_not_these(x: Any, weight: Any, rounding: str) -> str:
    """Why these tensors are not for the operator, wherever it runs."""
    if weight.shape[0] > _LARGEST_HIDDEN:
        return f"its rows hold up to {_LARGEST_HIDDEN} numbers"
    if paddle.float64 in (x.dtype, weight.dtype):
        return "it has no fp64"
    if x.dtype != weight.dtype and rounding == "llama":
        return "it rounds as LLaMA does where x and weight are of one type"
    return ""


@cache
def _library() -> tuple[Path, str]:
    """(the operator's library, why it cannot be had); built if need be."""
    try:
        path = binding.library(_log_line)
    except binding.BuildError as error:
        return Path(), str(error)
    return path, _register(path)


@cache
def _register(path: Path) -> str:
    """Why this library cannot be made Paddle's; "" when it is."""
    from paddle.base import core
    from paddle.base.framework import OpProtoHolder

    try:
        OpProtoHolder.instance().update_op_proto(core.load_op_meta_info_and_register_op(str(path)))
    except Exception as error:  # a library of another machine, a Paddle that has changed: training goes on without it
        return f"it cannot be loaded: {type(error).__name__}: {str(error).strip().splitlines()[-1]}"
    return ""


@cache
def _why_not_running(device: str) -> str:
    return without.try_out(lambda x, weight: _own(x, weight, 0.0, "fp32")[0], device)


@cache
def _tell(device: str, way: str, reason: str) -> None:
    """Once: which it is, and why. What is slower than it could be is said by every rank."""
    if not reason:
        _log_line(f"RMSNorm on the {device} by {way}", first_rank_only=True)
    else:
        _log_line(f"RMSNorm on the {device} by {way}: {reason}")


def _log_line(line: str, first_rank_only: bool = False) -> None:
    """Seen also where nobody has set up logging."""
    rank = os.environ.get("PADDLE_TRAINER_ID", "0")
    if first_rank_only and rank != "0":
        return
    if not _log.hasHandlers():
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
        _log.addHandler(handler)
        _log.setLevel(logging.INFO)
    _log.info(line if rank == "0" else f"rank {rank}: {line}")


def _device_of(x: Any) -> str:
    if paddle.in_dynamic_mode():
        return "cpu" if x.place.is_cpu_place() else "gpu" if x.place.is_gpu_place() else str(x.place)
    return paddle.device.get_device().split(":")[0]


_ready = binding.built()
if _ready is not None:
    _register(_ready)
