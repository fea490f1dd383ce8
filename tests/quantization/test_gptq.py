"""GPTQ's blocked algorithm, compared with the greedy one that inverts the Hessian again for each input."""

from __future__ import annotations

import numpy as np
import pytest

from paddle_llm.core.errors import UserError
from paddle_llm.quantization.gptq import GPTQOptions, output_error, quantize_gptq
from paddle_llm.quantization.grid import Grid, round_to_nearest


def problem(inputs: int, outputs: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return a weight, and X^T X of correlated inputs."""
    draw = np.random.default_rng(seed)
    weight_IO = draw.standard_normal((inputs, outputs)).astype(np.float32)
    x_TI = draw.standard_normal((4 * inputs, inputs)) @ draw.standard_normal((inputs, inputs)) / np.sqrt(inputs)
    return weight_IO, (x_TI.T @ x_TI / len(x_TI)).astype(np.float32)


def by_inversion(weight_IO, hessian_II, grid, group_size, damping):
    """Quantize the inputs in order; the remaining ones get the correction of OBQ (Frantar and Alistarh 2022, eq. 3)."""
    weight_IO, inputs = weight_IO.astype(np.float64), len(weight_IO)
    hessian_II = hessian_II.astype(np.float64) + damping * np.diag(hessian_II).mean() * np.eye(inputs)
    quantized_IO = np.empty_like(weight_IO)
    for row in range(inputs):
        if row % group_size == 0:
            scales_O, zeros_O = grid.fit(weight_IO[row : row + group_size])
        inverse = np.linalg.inv(hessian_II[row:, row:])
        quantized_IO[row] = scales_O * (grid.encode(weight_IO[row], scales_O, zeros_O) - zeros_O)
        error_O = (weight_IO[row] - quantized_IO[row]) / inverse[0, 0]
        weight_IO[row:] -= np.outer(inverse[:, 0], error_O)
    return quantized_IO


@pytest.mark.parametrize(("inputs", "group_size"), [(96, 32), (160, 160), (300, 20), (200, 150)])
def test_the_blocks_give_the_values_of_the_definition(inputs, group_size):
    weight_IO, hessian_II = problem(inputs, 24)
    grid = Grid(4)
    found = quantize_gptq(weight_IO, hessian_II, grid, GPTQOptions(group_size))
    expected = by_inversion(weight_IO, hessian_II, grid, group_size, 0.01)
    # A weight in the middle between two codes may be rounded either way, and the following ones then differ.
    assert (np.abs(found.dequantized() - expected) < 1e-3).mean() > 0.99
    assert output_error(weight_IO, found, hessian_II) == pytest.approx(
        np.sum((weight_IO - expected) * (hessian_II @ (weight_IO - expected)))
        / np.sum(weight_IO * (hessian_II @ weight_IO)),
        rel=0.02,
    )


def test_without_correlations_it_rounds_to_nearest():
    weight_IO, _ = problem(96, 24)
    found = quantize_gptq(weight_IO, np.eye(96, dtype=np.float32), Grid(4), GPTQOptions(32))
    np.testing.assert_array_equal(found.codes_IO, round_to_nearest(weight_IO, Grid(4), 32).codes_IO)


@pytest.mark.parametrize("bits", [8, 4, 3])
@pytest.mark.parametrize("act_order", [False, True])
def test_the_error_of_the_outputs_is_smaller_than_with_rounding(bits, act_order):
    weight_IO, hessian_II = problem(256, 64)
    found = quantize_gptq(weight_IO, hessian_II, Grid(bits), GPTQOptions(64, act_order))
    rounded = round_to_nearest(weight_IO, Grid(bits), 64)
    assert output_error(weight_IO, found, hessian_II) < 0.6 * output_error(weight_IO, rounded, hessian_II)


def test_act_order_groups_the_inputs_with_the_largest_activations():
    weight_IO, hessian_II = problem(128, 16)
    scale_I = np.random.default_rng(3).permutation(128) + 1.0
    hessian_II = (hessian_II * scale_I * scale_I[:, None]).astype(np.float32)
    found = quantize_gptq(weight_IO, hessian_II, Grid(4), GPTQOptions(32, act_order=True))
    order = np.argsort(-np.diag(hessian_II))
    assert found.groups_I[order].tolist() == [number // 32 for number in range(128)]
    # The first input of the order is only rounded.
    first = order[0]
    nearest = found.scales_GO[0] * (
        Grid(4).encode(weight_IO[first], found.scales_GO[0], found.zeros_GO[0]) - found.zeros_GO[0]
    )
    np.testing.assert_array_equal(found.dequantized()[first], nearest)


def test_an_input_that_is_always_zero_gets_the_weight_zero():
    weight_IO, hessian_II = problem(64, 8)
    hessian_II[7], hessian_II[:, 7] = 0, 0
    for act_order in (False, True):
        found = quantize_gptq(weight_IO, hessian_II, Grid(4), GPTQOptions(32, act_order))
        assert (found.dequantized()[7] == 0).all() and np.isfinite(found.dequantized()).all()


def test_too_few_inputs_need_only_the_damping():
    draw = np.random.default_rng(0)
    weight_IO, x_TI = draw.standard_normal((64, 8)).astype(np.float32), draw.standard_normal((4, 64)).astype(np.float32)
    found = quantize_gptq(weight_IO, x_TI.T @ x_TI, Grid(4), GPTQOptions(32))
    assert np.isfinite(found.dequantized()).all()
    with pytest.raises(UserError, match="its calibration inputs are not finite"):
        quantize_gptq(weight_IO, np.full((64, 64), np.nan), Grid(4), GPTQOptions(32), "model.a.weight")
