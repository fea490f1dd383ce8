"""From one type of weights to another, in numpy, which has no bfloat16: its bits stand in uint16."""

from __future__ import annotations

import numpy as np

from paddle_llm.config.errors import UserError

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
    wide = _widened(values) if stored == "bfloat16" else values.astype(np.float32)
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


def _widened(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _as_bfloat16(wide: np.ndarray) -> np.ndarray:
    bits = np.ascontiguousarray(wide).view(np.uint32)
    rounded = ((bits + (((bits >> 16) & 1) + 0x7FFF)) >> 16).astype(np.uint16)
    not_numbers = np.isnan(wide)
    if not_numbers.any():  # rounding would carry into the exponent
        rounded[not_numbers] = ((bits[not_numbers] >> 16) | 0x40).astype(np.uint16)
    return rounded
