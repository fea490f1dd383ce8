"""Values of the CPU kernels compared with float64 and with LLaMA's rounding, and with NaN and infinity."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import rms_norm_native as native
from cpu_kernel import Setting, backward, bf16, error, exact_backward, exact_forward, forward, narrow, widen

LIMIT = {"fp32": 1e-6, "fp16": 1e-3, "bf16": 4e-3}


def draw(rows: int, hidden: int, name: str, seed: int, weight_type: str | None = None):
    """x, residual, dy, dsum [rows, hidden] and weight [hidden] of the named types."""
    rng = np.random.default_rng(seed)
    matrices = [narrow(rng.standard_normal((rows, hidden)) * scale, name) for scale in (2.0, 1.0, 1.0, 0.5)]
    return *matrices, narrow(1 + 0.2 * rng.standard_normal(hidden), weight_type or name)


@pytest.mark.parametrize("weight_type", ["same", "fp32"])
@pytest.mark.parametrize("name", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize(("rows", "hidden"), [(1, 1), (5, 7), (300, 129), (64, 4096), (5, 65536)])
def test_beside_float64(library, rows, hidden, name, weight_type):
    weight_type = name if weight_type == "same" else weight_type
    x, residual, dy, dsum, weight = draw(rows, hidden, name, 1, weight_type)
    setting = Setting(weight_type=weight_type, threads=2)
    for r, ds in ((None, None), (residual, dsum)):
        y, invvar, total = forward(library, name, x, weight, r, setting)
        s = x if r is None else narrow(widen(x) + widen(r), name)
        if r is not None:
            assert (total == s).all(), "x + residual is not rounded as unfused code does"
        exact_y, exact_invvar = exact_forward(widen(s), widen(weight), 1e-6)
        assert error(y, exact_y) <= LIMIT[name]
        assert np.abs(invvar / exact_invvar - 1).max() <= 1e-6
        dx, dweight = backward(library, name, dy, s, weight, invvar, ds, setting)
        exact_dx, exact_dweight = exact_backward(
            widen(dy), widen(s), widen(weight), 1e-6, 0 if ds is None else widen(ds)
        )
        # The dx of a row of one element cancels to about epsilon, so it is compared with the terms of the difference.
        scale = np.abs(widen(dy) * widen(weight) * exact_invvar[:, None]).max(axis=1, keepdims=True)
        assert (np.abs(widen(dx) - exact_dx) / np.maximum(scale, np.abs(exact_dx))).max() <= LIMIT[name]
        assert error(dweight, exact_dweight) <= LIMIT[weight_type]


def test_dweight_of_many_rows_is_exact(library):
    """A running fp32 sum of 100,000 rows would lose two digits."""
    rng = np.random.default_rng(3)
    x = (1 + 0.1 * rng.standard_normal((100_000, 48))).astype(np.float32)
    dy = (1 + 0.1 * rng.standard_normal(x.shape)).astype(np.float32)
    weight = np.ones(48, np.float32)
    _, invvar, _ = forward(library, "fp32", x, weight)
    _, dweight = backward(library, "fp32", dy, x, weight, invvar, setting=Setting(threads=2))
    assert error(dweight, exact_backward(widen(dy), widen(x), widen(weight), 1e-6)[1]) <= 5e-7
    running = np.cumsum(dy * x * invvar[:, None], axis=0, dtype=np.float32)[-1]
    assert error(running, exact_backward(widen(dy), widen(x), widen(weight), 1e-6)[1]) > 1e-6


def test_gradient_is_the_slope(library):
    """dx and dweight equal central differences of the formula in float64."""
    rows, hidden, epsilon = 3, 11, 1e-2
    x, _, dy, dsum, weight = draw(rows, hidden, "fp32", 5)
    _, invvar, _ = forward(library, "fp32", x, weight, setting=Setting(epsilon=epsilon))
    dx, dweight = backward(library, "fp32", dy, x, weight, invvar, dsum, Setting(epsilon=epsilon))

    def loss(x_RH, weight_H):
        return (exact_forward(x_RH, weight_H, epsilon)[0] * widen(dy)).sum() + (x_RH * widen(dsum)).sum()

    step = 1e-5
    for found, which in ((dx, 0), (dweight[None], 1)):
        slope = np.zeros(found.shape)
        for index in np.ndindex(found.shape):
            ends = []
            for sign in (1, -1):
                point = [widen(x), widen(weight[None])]
                point[which][index] += sign * step
                ends.append(loss(*point))
            slope[index] = (ends[0] - ends[1]) / (2 * step)
        assert np.abs(found - slope).max() <= 1e-6 * np.abs(slope).max() + 1e-7


@pytest.mark.parametrize("isa", [native.ISA_PORTABLE, native.ISA_BEST])
def test_llamas_rounding_is_numpys_bit_by_bit(library, isa):
    x, _, dy, _, weight = draw(33, 771, "bf16", 7)
    setting = Setting(rounding=native.ROUND_LLAMA, isa=isa)
    y, invvar, _ = forward(library, "bf16", x, weight, setting=setting)
    x32, weight32 = (widen(each).astype(np.float32) for each in (x, weight))
    n_RH = bf16(x32 * invvar[:, None])
    assert (y == bf16(widen(n_RH).astype(np.float32) * weight32)).all()
    plain, _, _ = forward(library, "bf16", x, weight, setting=Setting(isa=isa))
    assert (plain == bf16(x32 * invvar[:, None] * weight32)).all()
    assert (plain != y).any()
    _, dweight = backward(library, "bf16", dy, x, weight, invvar, setting=setting)
    assert error(dweight, (widen(dy) * widen(n_RH)).sum(axis=0)) <= LIMIT["bf16"]


def test_roundings_are_equal_in_fp32(library):
    x, _, dy, _, weight = draw(4, 100, "fp32", 8)
    both = [
        forward(library, "fp32", x, weight, setting=Setting(rounding=r))[0]
        for r in (native.ROUND_FP32, native.ROUND_LLAMA)
    ]
    assert (both[0] == both[1]).all()


def test_every_half_precision_number(library):
    """Load and store keep each of the 65536 numbers, with each instruction set of this processor."""
    every = np.arange(65536, dtype=np.uint16)
    isas = range(native.ISA_PORTABLE, library.pllm_rms_norm_cpu_isa() + 1)
    arrays = (("bf16", every), ("fp16", every.view(np.float16)))
    for isa, (name, array) in itertools.product(isas, arrays):
        zero = np.zeros((1, 65536), array.dtype)
        _, _, total = forward(library, name, array[None], zero[0], zero, Setting(isa=isa))
        finite = ~np.isnan(widen(array))
        minus_zero = array.view(np.uint16) == 0x8000  # -0 + 0 is 0
        same = total[0].view(np.uint16) == every
        assert (same | minus_zero | ~finite).all()
        assert np.isnan(widen(total[0][~finite])).all()


@pytest.mark.parametrize("name", ["fp32", "fp16", "bf16"])
def test_nan_and_infinity_follow_the_formula(library, name):
    x, _, dy, _, weight = draw(6, 70, name, 9)
    x[1, 3], x[2, 69] = narrow(np.array([np.nan, np.inf]), name)
    x[3] = narrow(np.zeros(70), name)
    dy[4, 5], dy[5, 6] = narrow(np.array([np.nan, -np.inf]), name)
    with np.errstate(all="ignore"):
        for epsilon in (1e-6, 0.0):
            setting = Setting(epsilon=epsilon)
            y, invvar, _ = forward(library, name, x, weight, setting=setting)
            exact_y, exact_invvar = exact_forward(widen(x), widen(weight), epsilon)
            assert kinds(widen(y)) == kinds(exact_y) and kinds(invvar) == kinds(exact_invvar)
            dx, dweight = backward(library, name, dy, x, weight, invvar, setting=setting)
            exact_dx, exact_dweight = exact_backward(widen(dy), widen(x), widen(weight), epsilon)
            assert kinds(widen(dx)) == kinds(exact_dx) and kinds(widen(dweight)) == kinds(exact_dweight)


@pytest.mark.parametrize(("x_scale", "dy_scale"), [(1e15, 1e24), (1e-15, 1e-28)])
def test_intermediate_values_do_not_overflow(library, x_scale, dy_scale):
    x, _, dy, _, weight = draw(5, 200, "fp32", 12)
    x, dy = x * np.float32(x_scale), dy * np.float32(dy_scale)
    _, invvar, _ = forward(library, "fp32", x, weight, setting=Setting(epsilon=0.0))
    dx, dweight = backward(library, "fp32", dy, x, weight, invvar, setting=Setting(epsilon=0.0))
    exact_dx, exact_dweight = exact_backward(widen(dy), widen(x), widen(weight), 0.0)
    assert error(dx, exact_dx) <= LIMIT["fp32"] and error(dweight, exact_dweight) <= LIMIT["fp32"]


def kinds(array: np.ndarray) -> list:
    """Return the kind of each element: NaN, an infinity with its sign, or finite."""
    return np.where(np.isnan(array), 2, np.where(np.isinf(array), np.sign(array), 0)).ravel().tolist()
