"""RMSNorm without this package's operator: Paddle's fused operator where it runs, else Paddle's plain operations."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import paddle


def fused_rms_norm(
    x: paddle.Tensor, weight: paddle.Tensor, epsilon: float, rounding: str, device: str
) -> tuple[str, paddle.Tensor, paddle.Tensor]:
    """Compute the RMSNorm; see `fused_ln.fused_rms_norm` for the arguments.

    Returns:
        Name of the operator that was used, y, and the inverse root mean squares.
    """
    if rounding == "fp32" and x.dtype == weight.dtype != paddle.float64:
        if device == "gpu" and paddle_fused_runs():
            y, invvar = paddle.nn.functional.rms_norm(x, weight.shape, weight, epsilon)
            return "Paddle's fused operator", y, invvar.reshape(x.shape[:-1])
        if device == "cpu" and x.dtype == paddle.float32 and not _needs_gradient(x, weight):
            y = paddle.incubate.nn.functional.fused_rms_norm(x, weight, None, epsilon, x.ndim - 1)[0]
            return "Paddle's fused operator (fp32 without a gradient)", y, _inverse_rms(x, epsilon)
    return "Paddle's plain operations", *_plain(x, weight, epsilon, rounding)


def paddle_fused_runs() -> bool:
    """Return whether Paddle's own fused RMSNorm runs on this GPU, forward and backward.

    On a CPU, Paddle 3.3.1 has one for fp32 without a gradient only. While a program is recorded nothing can be tried:
    the result is False then, and is not cached.
    """
    return paddle.in_dynamic_mode() and not _why_not_paddle_fused()


@cache
def _why_not_paddle_fused() -> str:
    return try_out(lambda x, weight: paddle.nn.functional.rms_norm(x, [8], weight, 0.0)[0], "gpu")


def try_out(norm: Callable[[paddle.Tensor, paddle.Tensor], paddle.Tensor], device: str) -> str:
    """Run an RMSNorm on a small tensor, forward and backward.

    Args:
        norm: Function of x and weight that returns y, with epsilon 0.
        device: "cpu" or "gpu".

    Returns:
        Why it does not run; "" if it does.
    """
    place = paddle.framework._current_expected_place()
    if place.is_cpu_place() != (device == "cpu"):  # not the default device of this process
        place = paddle.CPUPlace() if device == "cpu" else paddle.CUDAPlace(0)
    x, weight = (paddle.to_tensor([values] * 8, place=place, stop_gradient=False) for values in (2.0, 3.0))
    x = x.reshape([1, 8])
    try:
        with paddle.enable_grad(), paddle.amp.auto_cast(False):
            y = norm(x, weight)
            found = [y, *paddle.grad(y.sum(), [x, weight])]
            # y = 2 / rms * 3 with rms 2. All values of the row are equal, so the gradient of x is 0.
            is_correct = [float(tensor.sum()) for tensor in found] == [24.0, 0.0, 8.0]
    except Exception as error:  # Paddle raises many types for a missing kernel
        return f"it does not run: {type(error).__name__}: {(str(error).strip().splitlines() or [''])[-1]}"
    return "" if is_correct else "it computes wrong values"


def _needs_gradient(*tensors: paddle.Tensor) -> bool:
    return paddle.is_grad_enabled() and not all(tensor.stop_gradient for tensor in tensors)


def _inverse_rms(x: paddle.Tensor, epsilon: float) -> paddle.Tensor:
    return paddle.rsqrt(x.square().mean(-1) + epsilon)


def _plain(
    x: paddle.Tensor, weight: paddle.Tensor, epsilon: float, rounding: str
) -> tuple[paddle.Tensor, paddle.Tensor]:
    wide = paddle.float64 if paddle.float64 in (x.dtype, weight.dtype) else paddle.float32
    with paddle.amp.auto_cast(False):
        x = x.astype(wide)
        invvar = _inverse_rms(x, epsilon)
        normed = x * invvar.unsqueeze(-1)
        if rounding == "llama":
            normed = normed.astype(weight.dtype).astype(wide)
        return (normed * weight.astype(wide)).astype(weight.dtype), invvar
