"""RMSNorm, rotary embedding and SwiGLU in float32 on a CPU; `cpu_switch.py` explains why.

Shapes: B batch, S sequence, N heads, D head width, H = N x D, R = B x S rows.
"""

from __future__ import annotations

from typing import Any

import paddle
import paddle.nn.functional as F
from paddle.autograd import PyLayer

from paddle_llm.models.patches.shared.cpu_switch import all_float32, faster_on_cpu, needs_gradient, only_needed
from paddle_llm.models.patches.shared.rms_norm import is_fused

# ---- RMSNorm --------------------------------------------------------------------------------------------------------


class RMSNorm(PyLayer):
    """x / sqrt(mean(x^2) + epsilon) * weight over the last axis (Zhang and Sennrich 2019, eq. 4)."""

    @staticmethod
    def forward(ctx: Any, x: paddle.Tensor, weight_H: paddle.Tensor, epsilon: float) -> paddle.Tensor:
        """Return the normalized and scaled `x`, in its shape [..., H]."""
        x_RH = x.reshape([-1, x.shape[-1]])
        scale_RH = paddle.rsqrt(_row_means(x_RH.square()) + epsilon).expand(x_RH.shape)
        normal_RH = x_RH * scale_RH
        ctx.needed = needs_gradient(x, weight_H)
        ctx.save_for_backward(normal_RH, scale_RH, weight_H)
        return (normal_RH * weight_H).reshape(x.shape)

    @staticmethod
    def backward(ctx: Any, grad: paddle.Tensor) -> tuple[paddle.Tensor | None, ...]:
        """Return the gradients of `x` and of the weight."""
        normal_RH, scale_RH, weight_H = ctx.saved_tensor()
        grad_RH = grad.reshape(normal_RH.shape)
        grad_weight_H = None
        if ctx.needed[1]:
            grad_weight_H = paddle.matmul(paddle.ones([1, grad_RH.shape[0]]), grad_RH * normal_RH).flatten()
        grad_RH = grad_RH * weight_H
        mean_RH = _row_means(grad_RH * normal_RH).expand(grad_RH.shape)
        grad_x = ((grad_RH - normal_RH * mean_RH) * scale_RH).reshape(grad.shape)
        return only_needed(ctx.needed, grad_x, grad_weight_H)


def _row_means(x_RH: paddle.Tensor) -> paddle.Tensor:
    """Return the means [R, 1]; a product with ones is many times faster than Paddle's reduction."""
    width = x_RH.shape[-1]
    return paddle.matmul(x_RH, paddle.full([width, 1], 1.0 / width))


@faster_on_cpu
def llama_norm(original: Any, self: Any, hidden_states: paddle.Tensor) -> paddle.Tensor:
    """Compute `LlamaRMSNorm.forward`."""
    if self.config.use_fused_rms_norm or not all_float32(hidden_states, self.weight):
        return original(self, hidden_states)
    return RMSNorm.apply(hidden_states, self.weight, self.variance_epsilon)


@faster_on_cpu
def chatglm2_norm(original: Any, self: Any, hidden_states: paddle.Tensor) -> paddle.Tensor:
    """Compute `forward` of ChatGLM2's RMSNorm."""
    if is_fused(self) or not all_float32(hidden_states, self.weight):
        return original(self, hidden_states)
    return RMSNorm.apply(hidden_states, self.weight, self.epsilon)


# ---- rotary embedding -----------------------------------------------------------------------------------------------


class Rotate(PyLayer):
    """x * cos + rotate_half(x) * sin, the rotary embedding of Su et al. 2021 in LLaMA's order of dimensions.

    The tables `cos_SND` and `sin_SND` are already repeated for all heads, and for all rows if positions differ between
    rows. The first half of `sin_SND` is negated.
    """

    @staticmethod
    def forward(ctx: Any, x_BSND: paddle.Tensor, cos_SND: paddle.Tensor, sin_SND: paddle.Tensor) -> paddle.Tensor:
        """Return the rotated states [B, S, N, D]."""
        ctx.save_for_backward(cos_SND, sin_SND)
        return x_BSND * cos_SND + _swap_halves(x_BSND) * sin_SND

    @staticmethod
    def backward(ctx: Any, grad_BSND: paddle.Tensor) -> paddle.Tensor:
        """Return the gradient of the states."""
        cos_SND, sin_SND = ctx.saved_tensor()
        return grad_BSND * cos_SND + _swap_halves(grad_BSND * sin_SND)


def _swap_halves(x: paddle.Tensor) -> paddle.Tensor:
    half = x.shape[-1] // 2
    return paddle.concat([x[..., half:], x[..., :half]], axis=-1)


@faster_on_cpu
def rotary_embedding(
    original: Any, q: Any, k: Any, cos: Any, sin: Any, position_ids: Any
) -> tuple[paddle.Tensor, paddle.Tensor]:
    """Compute `apply_rotary_pos_emb` of PaddleNLP's LLaMA."""
    length = q.shape[1]
    in_order = _are_in_order(position_ids, length)
    if not all_float32(q, k, cos, sin) or length > cos.shape[1]:
        return original(q, k, cos, sin, position_ids)
    if not in_order and position_ids.shape != q.shape[:2]:
        return original(q, k, cos, sin, position_ids)
    half = cos.shape[-1] // 2
    cos_S1D, sin_S1D = (table[0, :length] if in_order else table[0][position_ids] for table in (cos, sin))
    sin_S1D = paddle.concat([-sin_S1D[..., :half], sin_S1D[..., half:]], axis=-1)
    tables = {heads: _for_heads(cos_S1D, sin_S1D, heads) for heads in {q.shape[2], k.shape[2]}}
    return Rotate.apply(q, *tables[q.shape[2]]), Rotate.apply(k, *tables[k.shape[2]])


def _for_heads(cos_S1D: paddle.Tensor, sin_S1D: paddle.Tensor, heads: int) -> tuple[paddle.Tensor, paddle.Tensor]:
    return paddle.concat([cos_S1D] * heads, axis=-2), paddle.concat([sin_S1D] * heads, axis=-2)


def _are_in_order(position_ids: Any, length: int) -> bool:
    """Return whether positions are 0, 1, 2 ... in every sample."""
    return position_ids is None or (
        position_ids.shape[-1] == length and bool((position_ids == paddle.arange(length)).all())
    )


# ---- SwiGLU ---------------------------------------------------------------------------------------------------------


class SwiGLU(PyLayer):
    """silu(gate) * up (Shazeer 2020)."""

    @staticmethod
    def forward(ctx: Any, gate: paddle.Tensor, up: paddle.Tensor) -> paddle.Tensor:
        """Return the product, in the shape of the inputs."""
        sigmoid = F.sigmoid(gate)
        silu = gate * sigmoid
        ctx.needed = needs_gradient(gate, up)
        ctx.save_for_backward(sigmoid, silu, up)
        return silu * up

    @staticmethod
    def backward(ctx: Any, grad: paddle.Tensor) -> tuple[paddle.Tensor | None, ...]:
        """Return the gradients of `gate` and `up`."""
        sigmoid, silu, up = ctx.saved_tensor()
        slope = sigmoid + silu - silu * sigmoid
        return only_needed(ctx.needed, grad * up * slope, grad * silu)


@faster_on_cpu
def swiglu(original: Any, x: paddle.Tensor, y: Any = None) -> paddle.Tensor:
    """Compute Paddle's `swiglu`; without `y` the two halves of `x` are its inputs."""
    if y is None:
        x, y = paddle.chunk(x, 2, axis=-1)
    return SwiGLU.apply(x, y) if all_float32(x, y) else original(x, y)
