"""From one type of weights to another, in numpy, which has no bfloat16: its bits stand in uint16."""

from __future__ import annotations

import numpy as np

from paddle_llm.core.errors import UserError

_CHUNK = 1 << 17  # values
ITEM_SIZES = {"float32": 4, "bfloat16": 2, "float16": 2}


def converted(values: np.ndarray, stored: str, wanted: str, name: str = "a weight") -> np.ndarray:
    """Values as another type, rounded to the nearest, ties to even; the array itself where the type is the same.

    Args:
        stored, wanted: "float32", "bfloat16" (its bits in uint16) or "float16".
        name: of the weight, for the message.

    Raises:
        UserError: finite values that float16 cannot hold.
    """
    if stored == wanted:
        return values
    wide = widened(values)
    if wanted == "bfloat16":
        return _as_bfloat16(wide)
    if wanted == "float32":
        return wide
    with np.errstate(over="ignore"):
        half = wide.astype(np.float16)
    if np.isinf(half).any() and np.isfinite(wide[np.isinf(half)]).any():
        raise UserError(
            f"{name} has values beyond the range of float16 (65504), which would become infinite: use --dtype bfloat16"
        )
    return half


def widened(values: np.ndarray) -> np.ndarray:
    """In fp32; uint16 are bits of bfloat16."""
    if values.dtype == np.uint16:
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32)


def _as_bfloat16(wide: np.ndarray) -> np.ndarray:
    """Some values at a time, which stay in the processor's cache from one step to the next."""
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
        not_numbers = np.isnan(values[part])
        if not_numbers.any():  # rounding would carry into the exponent
            half[part][not_numbers] = ((bits[not_numbers] >> 16) | 0x40).astype(np.uint16)
    return half.reshape(wide.shape)
