"""Merged weights compute the same, and unmerging restores the base bit for bit."""

from __future__ import annotations

import numpy as np
import pytest

from paddle_llm.config.layout import Layout
from paddle_llm.core.errors import UserError
from tests.helpers.models.adapters import METHODS, attached, base_values, logits, network, set_trained
from tests.helpers.models.networks import WRITERS


@pytest.mark.parametrize("family", sorted(WRITERS))
@pytest.mark.parametrize("name", ["lora", "adalora"])
def test_merging_keeps_the_outputs_and_unmerging_restores_every_bit(tmp_path, family, name):
    from paddle_llm.peft.merge import merge, unmerge

    model = attached(network(tmp_path, family), METHODS[name])
    set_trained(model)
    weights, beside = base_values(model), logits(model, family)
    merge(model)
    merged = base_values(model)
    changed = {key for key in weights if not np.array_equal(weights[key], merged[key])}
    assert len(changed) >= 16  # every linear layer of four blocks
    assert np.abs(logits(model, family) - beside).max() < 2e-5 * np.abs(beside).max()
    unmerge(model)
    assert all(np.array_equal(value, weights[key]) for key, value in base_values(model).items())
    assert np.array_equal(logits(model, family), beside)


def test_merging_in_bfloat16(tmp_path):
    """Subtracting the product again would leave rounding errors in many weights."""
    import paddle

    from paddle_llm.config.run_config import RunConfig
    from paddle_llm.models.build import build_model
    from paddle_llm.peft.attach import trainable_tensors
    from paddle_llm.peft.merge import merge, unmerge

    folder = WRITERS["llama"](tmp_path)
    run = RunConfig(model_name_or_path=str(folder), seed=1, device="cpu")
    model = attached(build_model(run, Layout(), dtype="bfloat16"), METHODS["lora"])
    set_trained(model)
    assert {parameter.dtype for _, parameter, _ in trainable_tensors(model)} == {paddle.bfloat16}
    linear = model.llama.layers[0].mlp.up_proj
    bits, exact = linear.weight.numpy(), linear.weight.astype("float32")
    delta = linear.lora_A.astype("float32") @ linear.lora_B.astype("float32") * METHODS["lora"].scaling
    merge(model)
    # There is no bfloat16 product on a CPU (Paddle 3.3.1): of the outputs, only the weights' own rounding is seen here.
    off = np.abs((linear.weight.astype("float32") - exact - delta).numpy()) / np.abs((exact + delta).numpy())
    assert 0 < off.max() <= 2**-8
    subtracted = (linear.weight.astype("float32") - delta).astype("bfloat16").numpy()
    unmerge(model)
    assert np.array_equal(linear.weight.numpy(), bits)
    assert np.mean(subtracted != bits) > 0.3


def test_a_merged_network_is_a_plain_model_folder(tmp_path):
    from paddle_llm.checkpoint.merged_model import save_merged_model
    from paddle_llm.peft.merge import merge
    from tests.helpers.models.networks import build

    model = attached(network(tmp_path), METHODS["lora"])
    set_trained(model)
    beside = logits(model)
    merge(model)
    save_merged_model(model, Layout(), tmp_path / "merged")
    loaded = build(tmp_path / "merged", load=True)
    loaded.eval()
    assert np.abs(logits(loaded) - beside).max() < 1e-5


def test_other_methods_than_lora_cannot_be_merged(tmp_path):
    from paddle_llm.peft.merge import merge

    with pytest.raises(
        UserError, match="The active adapter cannot be merged: prefix. Only LoRA and AdaLoRA can be merged"
    ):
        merge(attached(network(tmp_path), METHODS["prefix"]))
    with pytest.raises(UserError, match="The active adapter cannot be merged: none"):
        merge(network(tmp_path))
