"""Call Paddle's fused attention kernels within their requirements (Paddle 3.3.1).

- A mask and `is_causal` exclude each other: flash attention raises an error, and the other kernels ignore the mask.
- `is_causal` aligns queries and keys at their first positions, so it is correct for equal lengths only.
- Queries, keys, values and the mask must have one type; otherwise Paddle computes without a fused kernel, or raises an
  error.
- The batch of a mask is not broadcast.
- FlashMask and flash attention take 16 bits, heads of at most 256 numbers in multiples of 8, and compute capability
  8.0. `scaled_dot_product_attention` checks that itself; `flashmask_attention` does not.

PaddleNLP 3.0.0b4 violates each of the first four; its modules get `checked_functional()` in place of `F`.

Shapes: B rows, S queries, T keys, N heads, G key-value heads, D head width.
"""

from __future__ import annotations

from functools import lru_cache
from types import SimpleNamespace

import paddle
import paddle.nn.functional as F

_MIN_CAPABILITY = (8, 0)
_MAX_WIDTH, _WIDTH_MULTIPLE = 256, 8


def checked_functional() -> SimpleNamespace:
    """Return `paddle.nn.functional` with `fused_attention` as `scaled_dot_product_attention`."""
    return SimpleNamespace(**{**vars(F), "scaled_dot_product_attention": fused_attention})


def fused_attention(
    query: paddle.Tensor,
    key: paddle.Tensor,
    value: paddle.Tensor,
    attn_mask: paddle.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    training: bool = True,
) -> paddle.Tensor:
    """Compute softmax(q k^T / sqrt(D) + mask) v with the signature of Paddle's function.

    Args:
        query: Queries [B, S, N, D].
        key: Keys [B, T, G, D] in the order of positions, the last S of which belong to the queries.
        value: Values [B, T, G, D]; their type is that of the result.
        attn_mask: Mask [B or 1, N or 1, S, T]: numbers that are added to the scores, or booleans. It must include the
            causal mask, because `is_causal` has no effect together with it.
        dropout_p: Dropout rate of the attention probabilities; default 0.
        is_causal: Whether each query sees the keys up to its own position only.
        training: Whether dropout is applied; default True.

    Returns:
        The attention output [B, S, N, D].
    """
    query, key = (states.astype(value.dtype) if states.dtype != value.dtype else states for states in (query, key))
    options = {"dropout_p": dropout_p, "training": training}
    length, total = query.shape[1], key.shape[1]
    if attn_mask is None and is_causal and length != total:
        attn_mask = paddle.tril(paddle.ones([1, 1, length, total], dtype="bool"), diagonal=total - length)
    if attn_mask is None:
        return F.scaled_dot_product_attention(query, key, value, is_causal=is_causal, **options)
    attn_mask = added_mask(attn_mask, value.dtype)
    if attn_mask.shape[0] == query.shape[0]:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=attn_mask, is_causal=False, **options)
    # One mask for all rows: row by row it takes 1 / B of the memory.
    rows = zip(*(paddle.split(states, query.shape[0], axis=0) for states in (query, key, value)), strict=True)
    return paddle.concat([F.scaled_dot_product_attention(*row, attn_mask=attn_mask, **options) for row in rows], axis=0)


def added_mask(mask: paddle.Tensor, dtype: paddle.dtype) -> paddle.Tensor:
    """Return a finite mask in `dtype` that is added to scores; with it a fully hidden row does not become NaN."""
    if mask.dtype == dtype:
        return mask
    lowest = paddle.finfo(dtype).min
    if mask.dtype == paddle.bool:
        return paddle.where(mask, paddle.zeros([1], dtype), paddle.full([1], lowest, dtype))
    return mask.astype("float32").clip(min=lowest).astype(dtype)


def has_flash_kernels(*states_BSND: paddle.Tensor) -> bool:
    """Return whether the flash kernels can compute attention between these states on their device."""
    query = states_BSND[0]
    width = query.shape[-1]
    if not on_gpu(query) or not in_16_bits(*states_BSND) or width > _MAX_WIDTH or width % _WIDTH_MULTIPLE:
        return False
    return _device_has_flash_kernels(_device_number(query))


def on_gpu(tensor: paddle.Tensor) -> bool:
    """Return whether a tensor is on a GPU."""
    return tensor.place.is_gpu_place()


def in_16_bits(*tensors: paddle.Tensor) -> bool:
    """Return whether all tensors have one type, float16 or bfloat16."""
    types = {tensor.dtype for tensor in tensors}
    return types in ({paddle.float16}, {paddle.bfloat16})


def _device_number(tensor: paddle.Tensor) -> int:
    return tensor.place.gpu_device_id() if tensor.place.is_gpu_place() else 0


@lru_cache
def _device_has_flash_kernels(number: int) -> bool:
    return built_with_flash_kernels() and paddle.device.cuda.get_device_capability(number) >= _MIN_CAPABILITY


def built_with_flash_kernels() -> bool:
    """Return whether this build of Paddle has the kernels; Paddle's selection of a kernel reads the same flag."""
    return bool(paddle.framework._global_flags().get("FLAGS_flash_attn_available", False))


def repeated_heads(states_BTGD: paddle.Tensor, heads: int) -> paddle.Tensor:
    """Return [B, T, N, D] with each key-value head repeated for its queries."""
    groups = states_BTGD.shape[2]
    if groups == heads:
        return states_BTGD
    # Not repeat_interleave, which has no kernel for 16 bits on a GPU.
    return states_BTGD.unsqueeze(3).expand([-1, -1, -1, heads // groups, -1]).flatten(2, 3)
