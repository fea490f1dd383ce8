"""Faster CPU versions of PaddleNLP's operations: the same results and gradients; PaddleNLP computes the cases they do not cover."""

from __future__ import annotations

import importlib
from types import SimpleNamespace
from unittest import mock

import numpy as np
import paddle
import pytest

from paddle_llm.models.patches import apply
from paddle_llm.models.patches.shared import cpu_attention, cpu_elementwise, cpu_switch
from tests.helpers.models import tiny
from tests.helpers.models.networks import batch, build

CONFIG = SimpleNamespace(use_flash_attention=False, context_parallel_degree=1, attention_dropout=0.0)


@pytest.fixture(autouse=True)
def installed():
    for family in ("llama", "qwen2", "chatglm_v2"):
        apply(family, "cpu")
    yield
    cpu_switch.enable()


def assert_faster_version(function, *inputs):
    """Compare an operation of PaddleNLP with its faster version, which replaces it while the faster versions are enabled."""

    def plain(*tensors):
        cpu_switch.disable()
        try:
            return function(*tensors)
        finally:
            cpu_switch.enable()

    asked = mock.Mock(side_effect=cpu_switch.all_float32)
    with (
        mock.patch.object(cpu_elementwise, "all_float32", asked),
        mock.patch.object(cpu_attention, "all_float32", asked),
    ):
        plain(*inputs)
        assert not asked.called, "PaddleNLP's own operation was not the one computed"
        function(*inputs)
        assert asked.called, "the faster operation was not used"
    assert_equal_versions(function, plain, *inputs)


def values(*shape, seed=0):
    tensor = paddle.to_tensor(np.random.default_rng(seed).normal(size=shape).astype(np.float32))
    tensor.stop_gradient = False
    return tensor


def results(function, *inputs):
    """Return outputs, and the gradients of a weighted sum of them."""
    for tensor in inputs:
        tensor.clear_grad()
    outputs = function(*inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    sum((output * values(*output.shape, seed=9).detach()).sum() for output in outputs).backward()
    return [output.numpy() for output in outputs] + [tensor.grad.numpy() for tensor in inputs]


def assert_equal_versions(ours, theirs, *inputs):
    for one, two in zip(results(ours, *inputs), results(theirs, *inputs), strict=True):
        assert one.shape == two.shape
        np.testing.assert_allclose(one, two, atol=1e-6 * max(1.0, np.abs(two).max()), rtol=0)


@pytest.mark.parametrize("shape", [(2, 5, 48), (7, 33), (1, 1, 8)])
def test_rms_norm_equals_paddlenlp(shape):
    def plain(x, weight):
        return paddle.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * x * weight

    assert_equal_versions(
        lambda x, w: cpu_elementwise.RMSNorm.apply(x, w, 1e-5), plain, values(*shape), values(shape[-1], seed=1)
    )


@pytest.mark.parametrize("length", [1, 3, 128, 129, 300])
def test_causal_attention_equals_paddlenlp(length):
    from paddlenlp.transformers.llama import modeling

    inputs = [values(2, length, 3, 8, seed=seed) for seed in range(3)]

    assert_faster_version(lambda q, k, v: modeling.scaled_dot_product_attention(q, CONFIG, k, v, None, False), *inputs)


@pytest.mark.parametrize("heads", [4, 1])
@pytest.mark.parametrize("positions", [None, [[0, 1, 2, 3, 4]] * 2, [[0, 1, 2, 3, 4], [2, 3, 0, 1, 4]]])
def test_rotary_embedding_equals_paddlenlp(heads, positions):
    from paddlenlp.transformers.llama import modeling

    angles = values(8, 6).detach()
    angles = paddle.concat([angles, angles], axis=-1)  # PaddleNLP's tables contain every angle twice
    cos, sin = (table[None, :, None, :] for table in (angles.cos(), angles.sin()))
    ids = None if positions is None else paddle.to_tensor(positions)
    q, k = values(2, 5, 4, 12), values(2, 5, heads, 12, seed=1)
    assert_faster_version(lambda q, k: modeling.apply_rotary_pos_emb(q, k, cos, sin, ids), q, k)


def test_swiglu_equals_paddlenlp():
    from paddlenlp.transformers.llama import modeling

    assert_faster_version(modeling.swiglu, values(2, 3, 10), values(2, 3, 10, seed=1))
    assert_faster_version(modeling.swiglu, values(2, 3, 10))


@pytest.mark.parametrize("overrides", [{}, {"num_key_value_heads": 2}, {"tie_word_embeddings": True}])
@pytest.mark.parametrize("family", ["llama", "chatglm_v2"])
def test_a_network_computes_the_same(tmp_path, family, overrides):
    writer = tiny.write_llama if family == "llama" else tiny.write_chatglm2
    folder = writer(tmp_path, **(overrides if family == "llama" else {}))
    ours = build(folder)
    loss = ours(**batch(family))[0]
    loss.backward()
    cpu_switch.disable()
    # `build` would enable them again. The network of PaddleNLP's own operations gets the same weights.
    theirs = type(ours)(ours.config)
    theirs.criterion = ours.criterion
    theirs.set_state_dict(ours.state_dict())
    plain = theirs(**batch(family))[0]
    plain.backward()
    assert float(loss) == pytest.approx(float(plain), abs=1e-6)
    for (name, one), (_, two) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        np.testing.assert_allclose(one.grad.numpy(), two.grad.numpy(), atol=1e-6, err_msg=name)


@pytest.mark.parametrize(
    "frozen", [("norm",), ("embed", "layernorm", "q_proj", "k_proj", "gate"), ("embed", "layers.0")]
)
def test_only_frozen_weights_get_no_gradient(tmp_path, frozen):
    """Paddle requires that tensors before the first trained weight have no gradient."""
    network = build(tiny.write_llama(tmp_path, num_hidden_layers=2))
    network(**batch("llama"))[0].backward()
    expected = {name: parameter.grad.numpy() for name, parameter in network.named_parameters()}
    network.clear_gradients()
    for name, parameter in network.named_parameters():
        parameter.stop_gradient = any(part in name for part in frozen)
    network(**batch("llama"))[0].backward()
    trained = {name: parameter for name, parameter in network.named_parameters() if not parameter.stop_gradient}
    assert 0 < len(trained) < len(expected)
    for name, parameter in trained.items():
        np.testing.assert_array_equal(parameter.grad.numpy(), expected[name], err_msg=name)


def test_padded_samples_are_computed_by_paddlenlp(tmp_path):
    network = build(tiny.write_llama(tmp_path))
    network.eval()
    ids = paddle.to_tensor([[5, 6, 7, 8, 9]])
    plain = network(ids)[0]
    padded = paddle.concat([paddle.zeros([1, 2], "int64"), ids], axis=1)
    mask = paddle.to_tensor([[0, 0, 1, 1, 1, 1, 1]])
    positions = paddle.to_tensor([[0, 0, 0, 1, 2, 3, 4]])
    found = network(padded, attention_mask=mask, position_ids=positions)[0][:, 2:]
    np.testing.assert_allclose(found.numpy(), plain.numpy(), atol=1e-6)


def test_16_bit_tensors_are_computed_by_paddlenlp():
    halves = [values(1, 4, 2, 8, seed=seed).astype("float16") for seed in range(3)]
    assert not cpu_switch.all_float32(*halves)


@pytest.mark.parametrize(("queries", "keys"), [(1, 9), (3, 9)])
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_attention_of_generation_equals_paddlenlp(family, queries, keys):
    """The mask is added to the scores, hides all positions in some rows, and gets no gradient."""
    modeling = importlib.import_module(f"paddlenlp.transformers.{family}.modeling")
    states = [values(2, length, 3, 8, seed=seed).detach() for seed, length in enumerate((queries, keys, keys))]
    hidden = np.random.default_rng(4).random((2, 1, queries, keys)) < 0.4
    hidden[0, 0, 0] = True
    mask = paddle.to_tensor(np.where(hidden, np.finfo(np.float32).min, 0).astype(np.float32))
    found = []
    for switch in (cpu_switch.enable, cpu_switch.disable):
        switch()
        found.append(modeling.scaled_dot_product_attention(states[0], CONFIG, *states[1:], mask, False))
    ours, theirs = found
    np.testing.assert_allclose(ours.numpy(), theirs.numpy(), atol=1e-6)
    assert ours.shape == [2, queries, 24]
