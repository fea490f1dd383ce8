"""Quantizes the linear layers of a network, one transformer layer after the other, and keeps the packed tensors.

Shapes: I inputs and O outputs of a linear layer, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from paddle_llm.core.errors import UserError
from paddle_llm.families import Family
from paddle_llm.models.prompt import Prompt
from paddle_llm.models.weights.gptq.format import PARTS, numbers_per_block
from paddle_llm.quantization.gptq import GPTQOptions, output_error, quantize_gptq
from paddle_llm.quantization.grid import Grid, QuantizedMatrix, from_tensors, round_to_nearest, weight_error
from paddle_llm.quantization.partial import PartialResults

if TYPE_CHECKING:
    from paddle_llm.quantization.layers import LayeredNetwork

OnLayer = Callable[[int, dict[str, float]], None]


@dataclass(frozen=True)
class Weights:
    """The weights to quantize.

    Attributes:
        family: Family of the model.
        layers: Number of transformer layers.
        read: Function from a canonical name to the values, float32 in PaddleNLP's layout [in, out].
        file_name: Function from the canonical name of a weight to the name of its layer in the files.
    """

    family: Family
    layers: int
    read: Callable[[str], np.ndarray]
    file_name: Callable[[str], str]

    def linear_name(self, index: int, linear: str) -> str:
        """Return the canonical name of the weight of a linear layer inside a transformer layer."""
        return f"{self.family.static_program.layer.format(index)}{linear}.weight"


def linear_groups(family: Family) -> list[tuple[str, ...]]:
    """Return the linear layers of a transformer layer, in the order of their use; those of a group have the same input."""
    program = family.static_program
    return [program.qkv, (program.out,), program.up, (program.down,)]


def check_shapes(weights: Weights, shape_of: Callable[[str], tuple[int, ...]], bits: int) -> None:
    """Check that every linear layer can be packed.

    Raises:
        UserError: If one has a size that does not fill whole words.
    """
    multiple = numbers_per_block(bits)
    for index in range(weights.layers):
        for linear in (one for group in linear_groups(weights.family) for one in group):
            name = weights.linear_name(index, linear)
            if any(size % multiple for size in shape_of(name)):
                inputs, outputs = shape_of(name)
                raise UserError(
                    f"{name} has {inputs} inputs and {outputs} outputs, and --bits {bits} needs multiples of {multiple}. Use other bits."
                )


def quantize_rtn(weights: Weights, grid: Grid, group_size: int, results: PartialResults, on_layer: OnLayer) -> None:
    """Round the weights of all layers to the nearest values of their grids, and save them.

    Args:
        weights: The weights.
        grid: Grid of each group.
        group_size: Inputs per group; -1: all.
        results: Receives the layers that it does not contain yet.
        on_layer: Function called after each layer with its index and |W - Q|^2 / |W|^2 of each linear layer.
    """
    for index in range(len(results.errors), weights.layers):
        found: dict[str, tuple[QuantizedMatrix, float]] = {}
        for linear in (one for group in linear_groups(weights.family) for one in group):
            weight_IO = weights.read(weights.linear_name(index, linear))
            quantized = round_to_nearest(weight_IO, grid, group_size)
            found[linear] = quantized, weight_error(weight_IO, quantized)
        _save(weights, index, found, results, on_layer)


def quantize_network(
    weights: Weights,
    network: LayeredNetwork,
    prompts: Sequence[Prompt],
    grid: Grid,
    options: GPTQOptions,
    results: PartialResults,
    on_layer: OnLayer,
) -> None:
    """Quantize all layers with GPTQ and save them.

    The inputs of a linear layer are those of the network in which everything before it is quantized already
    ("true sequential"). Finished layers of an interrupted run are loaded instead of quantized, so that the result is the same.

    Args:
        weights: The weights.
        network: Network of these weights.
        prompts: Calibration samples of one length.
        grid: Grid of each group.
        options: Options of GPTQ.
        results: Receives the layers that it does not contain yet.
        on_layer: Function called after each layer with its index and |X(W - Q)|^2 / |XW|^2 of each linear layer.
    """
    network.start(prompts)
    for index in range(weights.layers):
        with network.layer(index) as layer:
            if index < len(results.errors):
                _load(weights, index, layer, grid.bits, results)
                network.advance(layer)
                continue
            found: dict[str, tuple[QuantizedMatrix, float]] = {}
            for group in linear_groups(weights.family):
                found |= _quantize_group(weights, index, group, network, layer, grid, options)
            network.advance(layer)
        _save(weights, index, found, results, on_layer)


def _quantize_group(
    weights: Weights,
    index: int,
    group: Sequence[str],
    network: LayeredNetwork,
    layer: Any,
    grid: Grid,
    options: GPTQOptions,
) -> dict[str, tuple[QuantizedMatrix, float]]:
    from paddle_llm.quantization.layers import set_weight

    hessian_II = _hessian(network, layer, group[0])
    found = {}
    for linear in group:
        name = weights.linear_name(index, linear)
        weight_IO = weights.read(name)
        quantized = quantize_gptq(weight_IO, hessian_II, grid, options, name)
        found[linear] = quantized, output_error(weight_IO, quantized, hessian_II)
    for linear, (quantized, _) in found.items():
        set_weight(layer, linear, quantized.dequantized())
    return found


def _hessian(network: LayeredNetwork, layer: Any, linear: str) -> np.ndarray:
    """Return X^T X over all calibration tokens, divided by their number."""
    import paddle

    total, tokens = None, 0
    for inputs_TI in network.inputs_of(layer, linear):
        product_II = paddle.matmul(inputs_TI, inputs_TI, transpose_x=True)
        total = product_II if total is None else total + product_II
        tokens += inputs_TI.shape[0]
    assert total is not None, "there are no calibration samples"
    return (total / tokens).numpy()


def _save(
    weights: Weights,
    index: int,
    found: dict[str, tuple[QuantizedMatrix, float]],
    results: PartialResults,
    on_layer: OnLayer,
) -> None:
    tensors = {
        f"{weights.file_name(weights.linear_name(index, linear))}.{part}": value
        for linear, (quantized, _) in found.items()
        for part, value in quantized.tensors().items()
    }
    errors = {linear: error for linear, (_, error) in found.items()}
    results.save(tensors, errors)
    on_layer(index, errors)


def _load(weights: Weights, index: int, layer: Any, bits: int, results: PartialResults) -> None:
    """Set the weights of a layer to those of its saved results."""
    from paddle_llm.quantization.layers import set_weight

    files = results.open(index)
    for linear in (one for group in linear_groups(weights.family) for one in group):
        name = weights.file_name(weights.linear_name(index, linear))
        tensors = {part: np.asarray(files.view(f"{name}.{part}")) for part in PARTS}
        set_weight(layer, linear, from_tensors(tensors, bits).dequantized())
