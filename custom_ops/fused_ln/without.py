"""RMSNorm without this package's operator: by Paddle's fused one where it has one, else by its plain operations."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import paddle


def fused_rms_norm(x: Any, weight: Any, epsilon: float, rounding: str, device: str) -> tuple[str, Any, Any]:
    """(by what, y, the inverse root mean squares), as `fused_ln.fused_rms_norm` takes and gives them."""
    if rounding == "fp32" and x.dtype == weight.dtype != paddle.float64:
        if device == "gpu" and paddles_runs():
            y, invvar = paddle.nn.functional.rms_norm(x, weight.shape, weight, epsilon)
            return "Paddle's fused operator", y, invvar.reshape(x.shape[:-1])
        if device == "cpu" and x.dtype == paddle.float32 and not _wants_gradient(x, weight):
            y = paddle.incubate.nn.functional.fused_rms_norm(x, weight, None, epsilon, x.ndim - 1)[0]
            return "Paddle's fused operator (fp32 without a gradient)", y, _inverse_rms(x, epsilon)
    return "Paddle's plain operations", *_plain(x, weight, epsilon, rounding)


def paddles_runs() -> bool:
    """Whether Paddle's own fused RMSNorm runs on this GPU, forward and backward. On a CPU 3.3.1 has none but for fp32 without
    a gradient. While a program is recorded nothing can be tried: False, and asked again later."""
    return paddle.in_dynamic_mode() and not _why_not_paddles()


@cache
def _why_not_paddles() -> str:
    return try_out(lambda x, weight: paddle.nn.functional.rms_norm(x, [8], weight, 0.0)[0], "gpu")


def try_out(norm: Callable[[Any, Any], Any], device: str) -> str:
    """Why this RMSNorm does not run, forward and backward, on a device; "" where it does."""
    place = paddle.framework._current_expected_place()
    if place.is_cpu_place() != (device == "cpu"):  # asked about the one that this process does not use by itself
        place = paddle.CPUPlace() if device == "cpu" else paddle.CUDAPlace(0)
    x, weight = (paddle.to_tensor([values] * 8, place=place, stop_gradient=False) for values in (2.0, 3.0))
    x = x.reshape([1, 8])
    try:
        with paddle.enable_grad(), paddle.amp.auto_cast(False):
            y = norm(x, weight)
            found = [y, *paddle.grad(y.sum(), [x, weight])]
            # 2 / rms * 3; all of one row alike, so that x's gradient is 0.
            right = [float(tensor.sum()) for tensor in found] == [24.0, 0.0, 8.0]
    except Exception as error:  # what is lacking, Paddle says in many ways
        return f"it does not run: {type(error).__name__}: {(str(error).strip().splitlines() or [''])[-1]}"
    return "" if right else "it computes something else"


def _wants_gradient(*tensors: Any) -> bool:
    return paddle.is_grad_enabled() and not all(tensor.stop_gradient for tensor in tensors)


def _inverse_rms(x: Any, epsilon: float) -> Any:
    return paddle.rsqrt(x.square().mean(-1) + epsilon)


def _plain(x: Any, weight: Any, epsilon: float, rounding: str) -> tuple[Any, Any]:
    wide = paddle.float64 if paddle.float64 in (x.dtype, weight.dtype) else paddle.float32
    with paddle.amp.auto_cast(False):
        x = x.astype(wide)
        invvar = _inverse_rms(x, epsilon)
        normed = x * invvar.unsqueeze(-1)
        if rounding == "llama":
            normed = normed.astype(weight.dtype).astype(wide)
        return (normed * weight.astype(wide)).astype(weight.dtype), invvar
