"""GPTQ (Frantar et al. 2023, algorithm 1): quantize one input after the other and correct the remaining ones.

The error of a linear layer on its calibration inputs X is tr((W - Q)^T H (W - Q)) with H = X^T X. After input i is
rounded, the remaining inputs are changed so that this error is smallest; the upper Cholesky factor of the inverse of H
contains all factors. Corrections of later blocks are applied once per block.

Shapes: T tokens, I inputs, O outputs, G groups.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from paddle_llm.core.console import say
from paddle_llm.core.errors import UserError
from paddle_llm.quantization.grid import Grid, QuantizedMatrix

_BLOCK = 128  # inputs whose corrections are applied one by one
_DAMPING_STEPS = 3  # attempts, each with ten times the damping


@dataclass(frozen=True)
class GPTQOptions:
    """Options of the algorithm.

    Attributes:
        group_size: Inputs per group; -1: all.
        act_order: Whether inputs are quantized in descending order of the diagonal of H ("desc_act"); groups then consist
            of inputs that follow each other in that order.
        damping: Share of the mean of the diagonal of H that is added to it.
    """

    group_size: int = 128
    act_order: bool = False
    damping: float = 0.01


def quantize_gptq(
    weight_IO: np.ndarray, hessian_II: np.ndarray, grid: Grid, options: GPTQOptions, name: str = "a weight"
) -> QuantizedMatrix:
    """Quantize a weight so that its error on the calibration inputs is small.

    Args:
        weight_IO: The weight, float32.
        hessian_II: X^T X, up to a positive factor.
        grid: Grid of each group.
        options: Options.
        name: Name of the weight, for messages.

    Raises:
        UserError: If H is not finite, or is not positive definite even with a thousand times the damping.
    """
    inputs = len(weight_IO)
    order = np.arange(inputs)
    if options.act_order:
        order = np.argsort(-np.diag(hessian_II), kind="stable")
    unused_I = np.diag(hessian_II)[order] == 0
    weight_IO = weight_IO[order].astype(np.float32)
    weight_IO[unused_I] = 0  # an input that is always zero
    factor_II = _factor(hessian_II[np.ix_(order, order)], options.damping, name)
    size = options.group_size if options.group_size > 0 else inputs
    codes_IO, scales_GO, zeros_GO = _quantize_rows(weight_IO, factor_II, grid, size)
    back = np.argsort(order, kind="stable")
    groups_I = (np.arange(inputs, dtype=np.int32) // size)[back]
    return QuantizedMatrix(grid.bits, codes_IO[back], scales_GO, zeros_GO, groups_I.astype(np.int32))


def output_error(weight_IO: np.ndarray, quantized: QuantizedMatrix, hessian_II: np.ndarray) -> float:
    """Return |X (W - Q)|^2 / |X W|^2 on the calibration inputs."""
    difference_IO = weight_IO - quantized.dequantized()
    total = _energy(weight_IO, hessian_II)
    return _energy(difference_IO, hessian_II) / total if total > 0 else 0.0


def _energy(weight_IO: np.ndarray, hessian_II: np.ndarray) -> float:
    return float(((hessian_II @ weight_IO) * weight_IO).sum(dtype=np.float64))


def _quantize_rows(
    weight_IO: np.ndarray, factor_II: np.ndarray, grid: Grid, size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Quantize the rows of `weight_IO` in order, which is overwritten.

    Returns:
        Codes, scales and zeros.
    """
    inputs = len(weight_IO)
    codes_IO = np.empty(weight_IO.shape, np.uint8)
    scales, zeros = [], []
    block = _block_of(size)
    for start in range(0, inputs, block):
        stop = min(start + block, inputs)
        errors = np.empty((stop - start, weight_IO.shape[1]), np.float32)
        for row in range(start, stop):
            if row % size == 0:  # all earlier corrections of the group's rows have been applied
                scales_O, zeros_O = grid.fit(weight_IO[row : row + size])
                scales.append(scales_O)
                zeros.append(zeros_O)
            codes_O = grid.encode(weight_IO[row], scales_O, zeros_O)
            error_O = (weight_IO[row] - scales_O * (codes_O - zeros_O)) / factor_II[row, row]
            weight_IO[row + 1 : stop] -= np.outer(factor_II[row, row + 1 : stop], error_O)
            codes_IO[row], errors[row - start] = codes_O, error_O
        weight_IO[stop:] -= factor_II[start:stop, stop:].T @ errors
    return codes_IO, np.stack(scales), np.stack(zeros)


def _block_of(size: int) -> int:
    """Return the rows of a block: groups begin at the beginning of a block, or lie within one."""
    if size <= _BLOCK:
        return _BLOCK // size * size
    return _BLOCK if size % _BLOCK == 0 else size


def _factor(hessian_II: np.ndarray, damping: float, name: str) -> np.ndarray:
    """Return the upper Cholesky factor of the inverse of the damped H, float32.

    Raises:
        UserError: If there is none.
    """
    if not np.isfinite(hessian_II).all():
        raise UserError(f"{name}: its calibration inputs are not finite. Check the model with paddle-llm check-model.")
    base_II = hessian_II.astype(np.float64)
    diagonal = np.diag_indices_from(base_II)
    mean = float(base_II[diagonal].mean()) or 1.0
    base_II[diagonal] = np.where(base_II[diagonal] == 0, 1.0, base_II[diagonal])
    for attempt in range(_DAMPING_STEPS + 1):
        share = damping * 10**attempt
        damped_II = base_II.copy()
        damped_II[diagonal] += share * mean
        try:
            lower_II = np.linalg.cholesky(np.linalg.inv(damped_II))
        except np.linalg.LinAlgError:
            continue
        if np.isfinite(lower_II).all():
            if attempt:
                say(f"{name}: damping raised to {share:g}, because H is not positive definite with {damping:g}")
            return np.ascontiguousarray(lower_II.T, np.float32)
    raise UserError(
        f"{name}: the Hessian of its calibration inputs is not positive definite. Use more --calibration_samples."
    )
