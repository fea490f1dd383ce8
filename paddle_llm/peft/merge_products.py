r"""The weighted sum of LoRA's products as one product.

    w_1 s_1 A_1 B_1 + w_2 s_2 A_2 B_2  =  [w_1 s_1 A_1 | w_2 s_2 A_2] [B_1]
                                                                     [B_2]

The ranks add up and nothing is approximated: this is `combination_type="cat"` of PEFT's `add_weighted_adapter`. PEFT's
"linear" adds A and B separately, so that its product has cross terms A_1 B_2; it is not used here. A smaller rank is
the best approximation in the sense of least squares (Eckart and Young 1936), PEFT's "svd", here without the full matrix.

Shapes: A [in, r], B [r, out], as everywhere in this package.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Product:
    """One term of the sum, factor * a b.

    Attributes:
        a: A [in, r] in fp32.
        b: B [r, out] in fp32.
        factor: Number that the product is multiplied by.
    """

    a: np.ndarray
    b: np.ndarray
    factor: float


def concatenate(products: Sequence[Product]) -> tuple[np.ndarray, np.ndarray]:
    """Return A [in, sum of r] and B [sum of r, out] in fp32 whose product is the sum; the factors are in A."""
    with np.errstate(over="ignore"):  # the caller refuses infinite values
        a = np.concatenate([(one.a.astype(np.float64) * one.factor).astype(np.float32) for one in products], axis=1)
    return a, np.concatenate([one.b for one in products], axis=0)


def truncate(a: np.ndarray, b: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Approximate a product by one of smaller rank.

    Args:
        a: A [in, r].
        b: B [r, out].
        rank: Rank of the result, less than r.

    Returns:
        A and B of the result in fp32, of equal norm, and the Frobenius norm of the error divided by that of the product.
    """
    left, small_left = np.linalg.qr(a.astype(np.float64))
    right, small_right = np.linalg.qr(b.T.astype(np.float64))
    u, values, v = np.linalg.svd(small_left @ small_right.T)
    root = np.sqrt(values[:rank])
    total = float(np.linalg.norm(values))
    error = float(np.linalg.norm(values[rank:])) / total if total else 0.0
    kept_a, kept_b = left @ (u[:, : len(root)] * root), (root[:, None] * v[: len(root)]) @ right.T
    return kept_a.astype(np.float32), kept_b.astype(np.float32), error


def narrow(values: np.ndarray, dtype: str) -> np.ndarray | None:
    """Return an fp32 array in a 16-bit type if that changes no value, else None; bfloat16 as bits in uint16.

    Args:
        values: Array in fp32.
        dtype: "bfloat16", "float16" or "float32".
    """
    if dtype == "bfloat16":
        bits = np.ascontiguousarray(values).view(np.uint32)
        return None if (bits & 0xFFFF).any() else (bits >> 16).astype(np.uint16)
    if dtype == "float16":
        with np.errstate(over="ignore"):
            half = values.astype(np.float16)
        return half if np.array_equal(half.astype(np.float32), values) else None
    return values
