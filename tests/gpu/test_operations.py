"""Operations on a GPU compared with float64: attention of packed rows, the fused RMSNorm."""

from __future__ import annotations

import numpy as np
import pytest

from paddle_llm.rehearse.ranks import run_ranks
from tests.gpu import on_ranks
from tests.gpu.trainings import ENVIRONMENT

# Maximum error relative to the largest value of a result. A CPU has kernels for float32 only.
LIMITS = {"float32": 1e-5, "float16": 4e-3, "bfloat16": 3e-2}
LENGTHS = [[7, 9, 16], [20, 12]]


def dtype_on(device: str, dtype: str) -> str:
    return dtype if device == "gpu" else "float32"


def assert_close_to(found: list[np.ndarray], expected: list[np.ndarray], limit: float) -> None:
    for number, (one, other) in enumerate(zip(found, expected, strict=True)):
        np.testing.assert_allclose(one, other, atol=limit * np.abs(other).max(), rtol=0, err_msg=f"result {number}")


@pytest.mark.parametrize("dtype", LIMITS)
def test_attention_of_packed_rows_equals_float64(device: str, dtype: str) -> None:
    dtype = dtype_on(device, dtype)
    draw = np.random.default_rng(0)
    states = [draw.standard_normal((2, 32, 2, 16)).astype(np.float32) for _ in range(3)]
    ends = np.array([np.repeat(np.cumsum(row), row) for row in LENGTHS], dtype=np.int32)
    (found,) = run_ranks(on_ranks.packed_attention, 1, device, dtype, states, ends, device=device, env=ENVIRONMENT)
    assert_close_to(found, exact_attention(*(one.astype(np.float64) for one in states), ends), LIMITS[dtype])


def exact_attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, sample_ends_BS: np.ndarray) -> list[np.ndarray]:
    """Return the output [B, S, N, D] in float64, and the gradients of its sum of squares by q, k and v."""
    position_S = np.arange(q.shape[1])
    seen = (position_S[:, None] >= position_S) & (position_S[:, None] < sample_ends_BS[:, None, :])
    scale = q.shape[-1] ** -0.5
    scores = np.where(seen[:, None], np.einsum("bsnd,btnd->bnst", q, k) * scale, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    output = np.einsum("bnst,btnd->bsnd", weights, v)
    by_output = 2 * output
    by_weights = np.einsum("bsnd,btnd->bnst", by_output, v)
    by_scores = weights * (by_weights - (by_weights * weights).sum(-1, keepdims=True)) * scale
    gradients = [
        np.einsum("bnst,btnd->bsnd", by_scores, k),
        np.einsum("bnst,bsnd->btnd", by_scores, q),
        np.einsum("bnst,bsnd->btnd", weights, by_output),
    ]
    return [output, *gradients]


@pytest.mark.parametrize("dtype", LIMITS)
def test_the_fused_norm_equals_float64(device: str, dtype: str) -> None:
    dtype = dtype_on(device, dtype)
    draw = np.random.default_rng(0)
    x, weight = draw.standard_normal((6, 64)).astype(np.float32), draw.uniform(0.5, 1.5, 64).astype(np.float32)
    (found,) = run_ranks(on_ranks.fused_norm, 1, device, dtype, x, weight, device=device, env=ENVIRONMENT)
    inverse = 1 / np.sqrt((x.astype(np.float64) ** 2).mean(1, keepdims=True) + 1e-6)
    normed = x * inverse
    output = normed * weight
    by_normed = 2 * output * weight
    by_x = inverse * (by_normed - normed * (by_normed * normed).mean(1, keepdims=True))
    assert_close_to(found, [output, by_x, (2 * output * normed).sum(0)], LIMITS[dtype])
