"""Conversion between the types of weights in numpy. Numpy has no bfloat16, so its bits are kept in uint16."""

from __future__ import annotations

import numpy as np

from paddle_llm.core.errors import UserError

_CHUNK = 1 << 17  # values
ITEM_SIZES = {"float32": 4, "bfloat16": 2, "float16": 2}


def converted(values: np.ndarray, stored: str, target: str, name: str = "a weight") -> np.ndarray:
    """Convert values to another type, rounding to nearest even.

    Args:
        values: The values; bfloat16 as uint16 bits.
        stored: Their type: "float32", "bfloat16" or "float16".
        target: Type of the result, likewise.
        name: Name of the weight, for messages.

    Returns:
        The converted values; the array itself if the type does not change.

    Raises:
        UserError: If float16 cannot represent a finite value.
    """
    if stored == target:
        return values
    wide = widened(values)
    if target == "bfloat16":
        return _as_bfloat16(wide)
    if target == "float32":
        return wide
    with np.errstate(over="ignore"):
        half = wide.astype(np.float16)
    if np.isinf(half).any() and np.isfinite(wide[np.isinf(half)]).any():
        raise UserError(
            f"{name} has values beyond 65504, the maximum of float16. They would become infinite. Use --dtype bfloat16."
        )
    return half


def widened(values: np.ndarray) -> np.ndarray:
    """Convert values to fp32; uint16 values are bits of bfloat16."""
    if values.dtype == np.uint16:
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32)


def _as_bfloat16(wide: np.ndarray) -> np.ndarray:
    """Round fp32 values to bfloat16, in chunks that stay in the processor's cache between the operations."""
    values = np.ascontiguousarray(wide).reshape(-1)
    half = np.empty(values.shape, np.uint16)
    for start in range(0, len(values), _CHUNK):
        part = slice(start, start + _CHUNK)
        bits = values[part].view(np.uint32)
        rounded = bits >> 16
        rounded &= 1
        rounded += 0x7FFF
        rounded += bits
        rounded >>= 16
        half[part] = rounded
        is_nan = np.isnan(values[part])
        if is_nan.any():  # rounding would carry into the exponent
            half[part][is_nan] = ((bits[is_nan] >> 16) | 0x40).astype(np.uint16)
    return half.reshape(wide.shape)
