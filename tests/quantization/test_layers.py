"""Running a network layer by layer gives the hidden states of the whole network, for every family."""

from __future__ import annotations

from functools import reduce

import numpy as np
import pytest

from paddle_llm.families import FAMILIES
from paddle_llm.models.prompt import Prompt
from paddle_llm.quantization.quantize import linear_groups
from tests.helpers.models.networks import WRITERS, build, weights


@pytest.mark.parametrize("family", WRITERS)
def test_the_layers_compute_what_the_network_computes(family, tmp_path):
    import paddle

    from paddle_llm.config.local_files.model_folder import read_model_facts
    from paddle_llm.generation.eval_mode import generating
    from paddle_llm.models.build import plain_configuration
    from paddle_llm.models.incremental import IncrementalNetwork
    from paddle_llm.quantization.layers import LayeredNetwork, batch_rows, set_weight

    spec = FAMILIES[family]
    WRITERS[family](tmp_path, **{"init_std" if family == "opt" else "initializer_range": 0.3})
    model = build(tmp_path)
    stored = weights(model, family)
    rows = np.random.default_rng(0).integers(5, 100, (6, 12))
    prompts = [Prompt([*row.tolist(), 125, 126], 13) if family == "chatglm" else Prompt(row.tolist()) for row in rows]
    config = plain_configuration(tmp_path, spec, read_model_facts(tmp_path).raw)
    network = LayeredNetwork(config, spec, lambda name: stored[name])
    network.start(prompts)

    expected: list[np.ndarray] = []
    norm = reduce(getattr, spec.static_program.last_norm.split("."), model)
    linears = [linear for group in linear_groups(spec) for linear in group]
    inputs = {(index, linear): [] for index in range(network.count) for linear in linears}
    for index, linear in inputs:
        layer = reduce(getattr, f"{network.layer_path(index)}.{linear}".split("."), model)
        layer.register_forward_pre_hook(lambda _, found, key=(index, linear): inputs[key].append(found[0].numpy()))
    norm.register_forward_pre_hook(lambda _, found: expected.append(found[0].numpy()))
    assert batch_rows(6, 12) == 6
    with generating(model), paddle.no_grad():
        IncrementalNetwork(model, family, prompts, 0).read_all()

    for index in range(network.count):
        with network.layer(index) as layer:
            for linear in linears:
                (found,) = network.inputs_of(layer, linear)
                (whole,) = inputs[index, linear]
                np.testing.assert_array_equal(found.numpy(), whole.reshape(found.shape))
            network.advance(layer)
        assert not any(parameter._is_initialized() for parameter in layer.parameters())
    (hidden,) = network.hidden()
    np.testing.assert_array_equal(hidden, expected[0])

    with network.layer(0) as layer:
        (before,) = network.inputs_of(layer, linears[-1])
        set_weight(layer, linears[0], np.zeros_like(stored[f"{network.layer_path(0)}.{linears[0]}.weight"]))
        (after,) = network.inputs_of(layer, linears[-1])
    assert not np.array_equal(before.numpy(), after.numpy())


@pytest.mark.parametrize(
    ("count", "length", "rows"), [(64, 512, 8), (7, 512, 7), (13, 512, 1), (4, 9000, 1), (6, 2, 6)]
)
def test_all_batches_have_the_same_number_of_rows(count, length, rows):
    from paddle_llm.quantization.layers import batch_rows

    assert batch_rows(count, length) == rows
