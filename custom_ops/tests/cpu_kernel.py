"""Runs the CPU kernels on numpy arrays, and computes the reference in float64.

Shapes: _RH = [rows, hidden], _H = [hidden], _R = [rows]. Numpy has no bf16, so its bits are in an array of uint16; `widen`
and `narrow` convert it (or fp16, fp32) to and from float64.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import numpy as np
import rms_norm_native as native

TYPES = {"fp32": native.FLOAT32, "fp16": native.FLOAT16, "bf16": native.BFLOAT16}
DTYPES = {"fp32": np.float32, "fp16": np.float16, "bf16": np.uint16}
GUARD = 256  # bytes of poison before and after each matrix


def widen(array: np.ndarray) -> np.ndarray:
    """Convert fp32, fp16 or bf16 (uint16) to float64, exactly."""
    if array.dtype == np.uint16:
        array = (array.astype(np.uint32) << 16).view(np.float32)
    with np.errstate(invalid="ignore"):  # a signalling NaN
        return array.astype(np.float64)


def bf16(array: np.ndarray) -> np.ndarray:
    """Round fp32 to bf16 (uint16), ties to even; NaN stays NaN."""
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
    rounded = ((bits.astype(np.uint64) + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(array), ((bits >> 16) | 0x40).astype(np.uint16), rounded)


def narrow(array: np.ndarray, name: str) -> np.ndarray:
    """Round fp32 or float64 to the named type."""
    if name == "bf16":
        return bf16(array.astype(np.float32))
    with np.errstate(over="ignore"):
        return array.astype(DTYPES[name])


class Matrix:
    """A matrix [rows, hidden] in poisoned memory, with rows `stride` elements apart and `offset` elements after a cache line."""

    def __init__(
        self, rows: int, hidden: int, name: str, stride: int | None = None, offset: int = 0, poison: int = 0xA5
    ):
        dtype = np.dtype(DTYPES[name])
        self.stride = hidden if stride is None else stride
        span = (max(rows - 1, 0) * abs(self.stride) + hidden) * dtype.itemsize
        raw = np.full(span + 2 * GUARD + 64 + offset * dtype.itemsize, poison, np.uint8)
        begin = GUARD + -(raw.ctypes.data + GUARD) % 64 + offset * dtype.itemsize
        flat = raw[begin : begin + span].view(dtype)
        first = max(rows - 1, 0) * -self.stride if self.stride < 0 else 0
        strides = (self.stride * dtype.itemsize, dtype.itemsize)
        self.array = np.lib.stride_tricks.as_strided(flat[first:], (rows, hidden), strides)
        self.raw, self.poison = raw, poison
        self.pointer = raw.ctypes.data + begin + first * dtype.itemsize

    def put(self, values: np.ndarray) -> Matrix:
        self.array[...] = values
        return self

    def intact(self) -> bool:
        """Return whether the poison around and between the rows is unchanged. Overwrites the matrix."""
        self.array.view(np.uint8)[...] = self.poison
        return bool((self.raw == self.poison).all())


@dataclass
class Setting:
    """How a kernel is called: `gap` is added to hidden for the stride, `offset` is in elements after a cache line."""

    weight_type: str | None = None
    rounding: int = native.ROUND_FP32
    epsilon: float = 1e-6
    threads: int = 1
    isa: int = native.ISA_BEST
    stores: int = native.STORES_AUTO
    gap: int = 0
    offset: int = 0
    poison: int = 0xA5


def _check(library: ctypes.CDLL, code: int) -> None:
    assert code == 0, library.pllm_rms_norm_message(code).decode()


def forward(library, name, x_RH, weight_H, residual_RH=None, setting: Setting | None = None):
    """Return y_RH, invvar_R and sum_RH (or None) of arrays of the named type; check that nothing else was written."""
    s = setting or Setting()
    rows, hidden = x_RH.shape
    weight_type = s.weight_type or name
    shape = native.Shape(rows, hidden, s.epsilon, TYPES[name], TYPES[weight_type], s.rounding)

    def matrix(value=None):
        made = Matrix(rows, hidden, name, hidden + s.gap, s.offset, s.poison)
        return made if value is None else made.put(value)

    x, y = matrix(x_RH), matrix()
    weight = Matrix(1, hidden, weight_type, offset=s.offset).put(weight_H)
    invvar = Matrix(1, rows, "fp32", poison=s.poison)
    residual, total = (matrix(residual_RH), matrix()) if residual_RH is not None else (None, None)
    extra = (residual.pointer, residual.stride) if residual else (None, 0)
    out = (total.pointer, total.stride) if total else (None, 0)
    args = native.Forward(shape, x.pointer, x.stride, *extra, weight.pointer, *out, y.pointer, y.stride, invvar.pointer)
    _check(library, library.pllm_rms_norm_forward_cpu(args, native.CpuOptions(s.threads, s.isa, s.stores)))
    made = (y.array.copy(), invvar.array[0].copy(), total.array.copy() if total else None)
    assert all(each.intact() for each in (y, invvar, total) if each), "wrote outside of an output"
    return made


def backward(
    library, name, dy_RH, x_RH, weight_H, invvar_R, dsum_RH=None, setting: Setting | None = None, want_dweight=True
):
    """Return dx_RH and dweight_H (or None); check that nothing else was written."""
    s = setting or Setting()
    rows, hidden = x_RH.shape
    weight_type = s.weight_type or name
    shape = native.Shape(rows, hidden, s.epsilon, TYPES[name], TYPES[weight_type], s.rounding)

    def matrix(value=None):
        made = Matrix(rows, hidden, name, hidden + s.gap, s.offset, s.poison)
        return made if value is None else made.put(value)

    dy, x, dx = matrix(dy_RH), matrix(x_RH), matrix()
    weight = Matrix(1, hidden, weight_type, offset=s.offset).put(weight_H)
    invvar = Matrix(1, rows, "fp32").put(invvar_R)
    dsum = matrix(dsum_RH) if dsum_RH is not None else None
    dweight = Matrix(1, hidden, weight_type, offset=s.offset, poison=s.poison)
    size = library.pllm_rms_norm_workspace_cpu(shape, want_dweight)
    assert size >= 0
    workspace = Matrix(1, size // 4, "fp32", poison=s.poison)
    sums = (dweight.pointer if want_dweight else None, workspace.pointer if size else None, size)
    extra = (dsum.pointer, dsum.stride) if dsum else (None, 0)
    args = native.Backward(
        shape,
        dy.pointer,
        dy.stride,
        x.pointer,
        x.stride,
        weight.pointer,
        invvar.pointer,
        *extra,
        dx.pointer,
        dx.stride,
        *sums,
    )
    _check(library, library.pllm_rms_norm_backward_cpu(args, native.CpuOptions(s.threads, s.isa, s.stores)))
    made = (dx.array.copy(), dweight.array[0].copy() if want_dweight else None)
    assert dx.intact() and dweight.intact() and workspace.intact(), "wrote outside of an output"
    return made


# ---- The formula in float64.


def exact_forward(s_RH: np.ndarray, weight_H: np.ndarray, epsilon: float) -> tuple[np.ndarray, np.ndarray]:
    """Return y_RH and invvar_R of float64 arrays."""
    invvar_R = 1 / np.sqrt((s_RH**2).mean(axis=1) + epsilon)
    return s_RH * invvar_R[:, None] * weight_H, invvar_R


def exact_backward(dy_RH, s_RH, weight_H, epsilon, dsum_RH=0.0) -> tuple[np.ndarray, np.ndarray]:
    """Return dx_RH and dweight_H of float64 arrays."""
    invvar_R1 = 1 / np.sqrt((s_RH**2).mean(axis=1, keepdims=True) + epsilon)
    n_RH, g_RH = s_RH * invvar_R1, dy_RH * weight_H
    return invvar_R1 * (g_RH - n_RH * (g_RH * n_RH).mean(axis=1, keepdims=True)) + dsum_RH, (dy_RH * n_RH).sum(axis=0)


def error(found: np.ndarray, exact: np.ndarray) -> float:
    """Return the largest difference relative to the largest value of its row, since single values may cancel to almost 0."""
    if not exact.size:
        return 0.0
    scale = np.abs(exact).max(axis=-1, keepdims=True)
    return float((np.abs(widen(found) - exact) / np.maximum(scale, 1e-30)).max())
