"""The effect of a method on a network: trained tensors, outputs, and switching it off."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from paddle_llm.config.layout import Layout
from paddle_llm.core.errors import UserError
from paddle_llm.peft.method import Method
from tests.helpers.models.adapters import METHODS, attached, base_values, logits, network, set_trained, trained_values
from tests.helpers.models.networks import WRITERS, batch

FAMILIES = sorted(WRITERS)
EVERYWHERE = [name for name in METHODS if name != "prompt"]


@pytest.mark.parametrize(
    ("name", "family"),
    # GLM's prefix is made of hidden states: a projected one is refused, see test_method.py.
    [pair for pair in product(EVERYWHERE, FAMILIES) if pair != ("projected prefix", "glm")],
)
def test_exactly_the_trained_tensors_get_gradients(tmp_path, family, name):
    from paddle_llm.peft.attach import all_tensors
    from paddle_llm.peft.attachment import active_attachment

    model = attached(network(tmp_path, family), METHODS[name])
    set_trained(model)
    model.train()
    _backward(model, batch(family))
    added = {tensor.name for tensor in active_attachment(model).added}
    assert set(trained_values(model)) == (added or {key for key in base_values(model) if ".3." in key})
    for tensor, parameter, _ in all_tensors(model):
        assert (parameter.grad is not None) == (not parameter.stop_gradient), tensor
        assert parameter.stop_gradient or float(parameter.grad.abs().sum()) > 0, tensor


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["lora", "prefix", "adapter"])
def test_an_adapter_changes_the_output_and_can_be_switched_off(tmp_path, family, name):
    from paddle_llm.peft.save import set_active

    model = network(tmp_path, family)
    before, weights = logits(model, family), base_values(model)
    attached(model, METHODS[name])
    set_trained(model)
    changed = logits(model, family)
    assert np.abs(changed - before).max() > 1e-3
    set_active(model, None)
    assert np.array_equal(logits(model, family), before)
    set_active(model, "default")
    assert np.array_equal(logits(model, family), changed)
    assert all(np.array_equal(value, weights[key]) for key, value in base_values(model).items())


def test_lora_starts_equal_to_the_base_and_adapters_close_to_it(tmp_path):
    model = network(tmp_path)
    before = logits(model)
    assert np.array_equal(logits(attached(model, METHODS["lora"])), before)
    close = np.abs(logits(attached(model, METHODS["adapter"])) - before).max()
    assert 0 < close < 0.02 * np.abs(before).max()


def test_lora_computes_its_formula(tmp_path):
    method = Method("lora", rank=4, alpha=6, rslora=True, targets=("q_proj",))
    model = attached(network(tmp_path), method)
    set_trained(model)
    linear = model.llama.layers[0].self_attn.q_proj
    import paddle

    x = paddle.randn([3, 64])
    expected = x @ linear.weight + 6 / 2 * (x @ linear.lora_A @ linear.lora_B)
    assert np.allclose(linear(x).numpy(), expected.numpy(), atol=1e-6)
    assert {name.split(".")[-2] for name in trained_values(model)} == {"q_proj"}


def test_lora_plus_raises_the_learning_rate_of_b(tmp_path):
    import paddle

    model = attached(network(tmp_path), Method("lora", rank=4, lora_plus_scale=16.0, targets=("q_proj",)))
    linear = model.llama.layers[0].self_attn.q_proj
    steps = {}
    for parameter in (linear.lora_A, linear.lora_B):
        before = parameter.numpy()
        optimizer = paddle.optimizer.AdamW(1e-3, parameters=[parameter], weight_decay=0.0)
        parameter.sum().backward()
        optimizer.step()
        steps[parameter.name] = float(np.abs(parameter.numpy() - before).mean())
    assert steps[linear.lora_B.name] == pytest.approx(16 * steps[linear.lora_A.name], rel=1e-4)


def test_initial_values_depend_only_on_the_seed_and_names(tmp_path):
    one = trained_values(attached(network(tmp_path), METHODS["lora"]))
    few = trained_values(attached(network(tmp_path), Method("lora", rank=4, targets=("o_proj",))))
    assert few and all(np.array_equal(value, one[name]) for name, value in few.items())
    assert 0.8 < np.std(one["llama.layers.0.self_attn.q_proj.lora_A"]) * np.sqrt(3 * 64) < 1.2


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (("q_proj", "quory"), "'quory' matches no layer"),
        (("norm",), "'norm' is not a linear layer of a transformer block"),
        (("q_proj(",), "neither the name of a layer nor a regular expression"),
        (("all-linear", "q_proj"), "Drop the other names"),
    ],
)
def test_targets_that_match_nothing_are_refused(tmp_path, targets, message):
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        attached(network(tmp_path), Method("lora", targets=targets))


def test_patterns_select_layers(tmp_path):
    model = attached(network(tmp_path), Method("lora", targets=(r".*layers\.[01]\..*(q|v)_proj", "mlp.down_proj")))
    layers = {name.rpartition(".")[0] for name in trained_values(model)}
    wanted = {f"llama.layers.{n}.self_attn.{p}_proj" for n in (0, 1) for p in "qv"}
    assert layers == wanted | {f"llama.layers.{n}.mlp.down_proj" for n in range(4)}


def test_modules_to_save_are_trained_directly(tmp_path):
    model = attached(network(tmp_path), Method("lora", targets=("q_proj",), modules_to_save=("lm_head", "norm")))
    whole = {name for name in trained_values(model) if "lora" not in name}
    assert whole == {"lm_head.weight", "llama.norm.weight"}
    with pytest.raises(UserError, match=r"modules_to_save: 'head' matches no part.*lm_head"):
        attached(network(tmp_path), Method("lora", modules_to_save=("head",)))


def test_freezing_trains_the_last_layers_and_named_parts(tmp_path):
    model = attached(network(tmp_path), Method("freeze", last_layers=2, named_parts=("lm_head",)))
    names = set(trained_values(model))
    assert "lm_head.weight" in names
    assert {name.split(".")[2] for name in names if ".layers." in name} == {"2", "3"}
    for method, message in (
        (Method("freeze"), "Nothing is left to train"),
        (Method("freeze", last_layers=9), "the model has 4 layers"),
    ):
        with pytest.raises(UserError, match=message):
            attached(network(tmp_path), method)


@pytest.mark.parametrize("size", [8, 512])
def test_the_trained_share_is_reported(tmp_path, capsys, size):
    from paddle_llm.peft.attach import attach

    model = network(tmp_path)
    total = sum(value.size for value in base_values(model).values())
    attach(model, Method("adapter", adapter_size=size), Layout(), seed=1)
    added = 8 * (2 * 64 * size + size + 64)
    printed = capsys.readouterr().err
    assert f"adapter: {added:,} of {total + added:,} parameters are trained ({added / (total + added):.2%})" in printed
    assert ("usual are 0.5% to 8%" in printed) == (size == 512)


@pytest.mark.parametrize(
    ("method", "layout", "message"),
    [
        (METHODS["prompt"], Layout(pipeline=2), "prompt tuning with pipeline_parallel_degree = 2"),
        (METHODS["adalora"], Layout(pipeline=2), "AdaLoRA with pipeline_parallel_degree = 2"),
        (METHODS["projected prefix"], Layout(pipeline=2), "--prefix_projection with pipeline_parallel_degree = 2"),
        (
            METHODS["projected prefix"],
            Layout(sharding=2, sharding_stage=3),
            "--prefix_projection with --sharding stage3",
        ),
    ],
)
def test_unsupported_combinations_are_refused_with_the_reason(tmp_path, method, layout, message):
    with pytest.raises(UserError, match=message):
        attached(network(tmp_path), method, layout)


@pytest.mark.parametrize("name", ["lora", "prefix", "adapter", "freeze"])
def test_only_trained_tensors_have_gradients_and_optimizer_states(tmp_path, name):
    """The allocator's figures are exact to the byte, except for Adam's two powers of each tensor and the learning rate."""
    import gc

    import paddle
    from paddle.base import core

    gc.collect()  # otherwise networks of earlier tests would be freed between the measurements

    def allocated() -> int:
        return core.host_memory_stat_current_value("Allocated", 0)

    model = attached(network(tmp_path), METHODS[name])
    model.train()
    trained = list(trained_values(model).values())
    size = sum(value.nbytes for value in trained)
    optimizer = paddle.optimizer.AdamW(1e-3, parameters=model.parameters())
    inputs, before = batch("llama"), allocated()
    _backward(model, inputs)
    gradients = allocated() - before
    optimizer.step()
    states = allocated() - before - gradients
    assert gradients == size < 0.25 * sum(value.nbytes for value in base_values(model).values())
    assert states == 2 * size + 8 * len(trained) + 4


def _backward(model, inputs):
    loss = model(**inputs)
    (loss[0] if isinstance(loss, tuple) else loss).backward()
