"""The grid of a group of weights: scale, zero and codes; and rounding to nearest (RTN).

Shapes: I inputs, O outputs, G groups, N inputs of one group.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from paddle_llm.models.weights.gptq.format import (
    G_IDX,
    QWEIGHT,
    QZEROS,
    SCALES,
    dequantize,
    format_written,
    pack,
    unpack,
    zero_offset,
)

_SMALLEST_SCALE = 2.0**-20  # 16 units of the smallest float16


@dataclass(frozen=True)
class Grid:
    """Evenly spaced values: scale * (code - zero) with codes of `bits` bits.

    Attributes:
        bits: Bits per code.
        symmetric: Whether the zero is in the middle of the codes; otherwise the grid covers the values of the group and 0.
    """

    bits: int
    symmetric: bool = True

    @property
    def largest(self) -> int:
        """Largest code."""
        return (1 << self.bits) - 1

    def fit(self, weights_NO: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return scales and zeros, float32 [O], for the values of a group. Scales are numbers of float16.

        A zero is at least 1, because files of the format `gptq` store it minus 1.
        """
        lowest_O, highest_O = np.minimum(weights_NO.min(axis=0), 0), np.maximum(weights_NO.max(axis=0), 0)
        if self.symmetric:
            scales_O = _rounded(2 * np.maximum(-lowest_O, highest_O) / self.largest)
            return scales_O, np.full_like(scales_O, (self.largest + 1) // 2)
        # A group without negative values keeps one code below zero.
        scales_O = _rounded(np.maximum((highest_O - lowest_O) / self.largest, highest_O / (self.largest - 1)))
        return scales_O, np.clip(np.rint(-lowest_O / scales_O), 1, self.largest).astype(np.float32)

    def encode(self, weights: np.ndarray, scales_O: np.ndarray, zeros_O: np.ndarray) -> np.ndarray:
        """Return the codes, float32, of the grid values that are nearest to weights [O] or [N, O]."""
        return np.clip(np.rint(weights / scales_O) + zeros_O, 0, self.largest)


def _rounded(scales_O: np.ndarray) -> np.ndarray:
    return np.maximum(scales_O, _SMALLEST_SCALE).astype(np.float16).astype(np.float32)


@dataclass(frozen=True)
class QuantizedMatrix:
    """A quantized weight in PaddleNLP's layout [in, out].

    Attributes:
        bits: Bits per code.
        codes_IO: Codes, uint8.
        scales_GO: Scales, float32 with values of float16.
        zeros_GO: Zeros, float32 whole numbers from 1.
        groups_I: Group of each input, int32.
    """

    bits: int
    codes_IO: np.ndarray
    scales_GO: np.ndarray
    zeros_GO: np.ndarray
    groups_I: np.ndarray

    def dequantized(self) -> np.ndarray:
        """Return the values that a reader of the files gets, float32 [I, O]."""
        return dequantize(self.codes_IO, self.scales_GO, self.zeros_GO, self.groups_I)

    def tensors(self) -> dict[str, np.ndarray]:
        """Return the tensors of the files, in `format_written`, by the ends of their names."""
        stored_GO = (self.zeros_GO - zero_offset(format_written(self.bits))).astype(np.uint8)
        return {
            QWEIGHT: pack(self.codes_IO, self.bits),
            QZEROS: np.ascontiguousarray(pack(np.ascontiguousarray(stored_GO.T), self.bits).T),
            SCALES: self.scales_GO.astype(np.float16),
            G_IDX: self.groups_I.astype(np.int32),
        }


def from_tensors(tensors: Mapping[str, np.ndarray], bits: int) -> QuantizedMatrix:
    """Return the matrix of tensors that `QuantizedMatrix.tensors` has returned."""
    zeros_GO = unpack(tensors[QZEROS].T, bits).T.astype(np.float32) + zero_offset(format_written(bits))
    codes_IO = unpack(tensors[QWEIGHT], bits)
    return QuantizedMatrix(bits, codes_IO, tensors[SCALES].astype(np.float32), zeros_GO, np.asarray(tensors[G_IDX]))


def round_to_nearest(weight_IO: np.ndarray, grid: Grid, group_size: int) -> QuantizedMatrix:
    """Quantize each weight to the nearest value of the grid of its group.

    Args:
        weight_IO: The weight.
        grid: The grid.
        group_size: Consecutive inputs per group; -1: all inputs. The last group may be smaller.
    """
    inputs = len(weight_IO)
    size = group_size if group_size > 0 else inputs
    codes_IO = np.empty(weight_IO.shape, np.uint8)
    scales, zeros = [], []
    for start in range(0, inputs, size):
        group_NO = weight_IO[start : start + size]
        scales_O, zeros_O = grid.fit(group_NO)
        codes_IO[start : start + size] = grid.encode(group_NO, scales_O, zeros_O)
        scales.append(scales_O)
        zeros.append(zeros_O)
    groups_I = np.arange(inputs, dtype=np.int32) // size
    return QuantizedMatrix(grid.bits, codes_IO, np.stack(scales), np.stack(zeros), groups_I.astype(np.int32))


def weight_error(weight_IO: np.ndarray, quantized: QuantizedMatrix) -> float:
    """Return |W - Q|^2 / |W|^2."""
    total = float(np.square(weight_IO, dtype=np.float64).sum())
    return float(np.square(weight_IO - quantized.dequantized(), dtype=np.float64).sum()) / total if total else 0.0
