"""The criterion: a mean over the labels that are not ignored; padding of the vocabulary has no effect."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import paddle
import pytest

from paddle_llm.models.loss import CausalLMLoss
from paddle_llm.models.weights.vocabulary import pad_config, padded_vocab_size, plain_config, unpad
from tests.helpers.models import tiny
from tests.helpers.models.networks import build


def config(vocab_size, **values):
    base = {"tensor_parallel_degree": 1, "tensor_parallel_rank": 0, "tensor_parallel_output": True}
    return SimpleNamespace(vocab_size=vocab_size, **{**base, **values})


def by_hand(logits, labels):
    total, count = 0.0, 0
    for row, label in zip(logits.reshape(-1, logits.shape[-1]).astype(np.float64), labels.ravel(), strict=True):
        if label != -100:
            total += np.log(np.exp(row - row.max()).sum()) + row.max() - row[label]
            count += 1
    return total / max(count, 1)


def test_smoothing_spreads_over_the_whole_vocabulary():
    """The value is (1 - e) nll + e mean(-log p), the gradient softmax minus the smoothed target, both computed by hand."""
    rng = np.random.default_rng(1)
    logits, labels = rng.normal(size=(2, 4, 7)).astype(np.float32) * 3, rng.integers(0, 7, (2, 4))
    labels[0, :2] = -100
    criterion, share = CausalLMLoss(config(7)), 0.2
    criterion.label_smoothing = share
    given = paddle.to_tensor(logits, stop_gradient=False)
    found = criterion(given, paddle.to_tensor(labels))
    found.backward()
    exact = logits.astype(np.float64)
    p = np.exp(exact) / np.exp(exact).sum(-1, keepdims=True)
    target = (1 - share) * np.eye(7)[labels.clip(0)] + share / 7
    counts = (labels != -100)[..., None]
    assert float(found) == pytest.approx((-(target * np.log(p)) * counts).sum() / 6, rel=1e-6)
    assert np.allclose(given.grad.numpy(), (p - target) * counts / 6, atol=1e-7)


def test_the_loss_is_the_mean_over_the_labels_that_are_not_ignored():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(2, 5, 7)).astype(np.float32) * 3, rng.integers(0, 7, (2, 5))
    labels[0, :3] = -100
    logits[1, 0] = -50.0
    logits[1, 0, labels[1, 0]] = 50.0  # its loss is exactly zero, and it is counted
    found = CausalLMLoss(config(7))(paddle.to_tensor(logits), paddle.to_tensor(labels))
    assert float(found) == pytest.approx(by_hand(logits, labels), rel=1e-6)


def test_a_batch_without_labels_has_loss_zero_and_a_gradient():
    logits = paddle.ones([1, 3, 7])
    logits.stop_gradient = False
    loss = CausalLMLoss(config(7))(logits, paddle.full([1, 3], -100, "int64"))
    loss.backward()
    assert float(loss) == 0.0 and float(logits.grad.abs().sum()) == 0.0


def test_16_bit_logits_are_summed_in_fp32():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(1, 64, 50)).astype(np.float16), rng.integers(0, 50, (1, 64))
    found = CausalLMLoss(config(50))(paddle.to_tensor(logits), paddle.to_tensor(labels))
    assert found.dtype == paddle.float32
    assert float(found) == pytest.approx(by_hand(logits, labels), rel=1e-6)


def test_padding_has_no_effect_on_the_loss_or_its_gradient():
    rng = np.random.default_rng(0)
    real, labels = rng.normal(size=(2, 5, 7)).astype(np.float32), paddle.to_tensor(rng.integers(0, 7, (2, 5)))
    padded = config(7)
    assert pad_config(padded, 4) == 1
    logits = paddle.to_tensor(np.concatenate([real, np.full((2, 5, 1), 9, np.float32)], axis=-1))
    logits.stop_gradient = False
    loss = CausalLMLoss(padded)(logits, labels)
    loss.backward()
    assert float(loss) == float(CausalLMLoss(config(7))(paddle.to_tensor(real), labels))
    assert float(logits.grad[..., 7].abs().max()) == 0.0
    assert float(logits.grad[..., :7].abs().max()) > 0


def test_saved_weights_have_no_padding(tmp_path):
    assert [padded_vocab_size(size, 4) for size in (8, 9, 12)] == [8, 12, 12]
    network = build(tiny.write_llama(tmp_path, vocab_size=121))
    pad_config(network.config, 4)
    assert network.config.vocab_size == 124
    full = np.arange(124 * 2).reshape(124, 2)
    np.testing.assert_array_equal(unpad("llama", "llama.embed_tokens.weight", full, network.config), full[:121])
    np.testing.assert_array_equal(unpad("llama", "lm_head.weight", full.T, network.config), full.T[:, :121])
    other = unpad("llama", "llama.layers.0.mlp.up_proj.weight", full, network.config)
    np.testing.assert_array_equal(other, full)
    saved = plain_config(network.config)
    assert saved.vocab_size == 121 and "unpadded_vocab_size" not in saved.to_dict()
    assert network.config.vocab_size == 124


def test_logits_of_nan_give_a_loss_of_nan():
    """Paddle's criterion gives ln(V) here on a CPU. If this fails, remove the line in loss.py."""
    logits_BSV = paddle.full([1, 3, 8], float("nan"))
    labels_BS = paddle.zeros([1, 3], dtype="int64")
    upstream = paddle.nn.functional.cross_entropy(logits_BSV, labels_BS)
    assert float(upstream) == pytest.approx(np.log(8)), "Paddle has fixed its softmax"
    assert np.isnan(float(CausalLMLoss(config(8))(logits_BSV, labels_BS)))


def test_a_divisor_on_the_device_gives_the_same_bits_and_is_not_part_of_the_state():
    criterion = CausalLMLoss(config(8))
    logits_BSV = paddle.to_tensor(np.random.default_rng(0).standard_normal((2, 5, 8), np.float32))
    labels_BS = paddle.ones([2, 5], dtype="int64")
    losses = []
    for divisor in (7 / 3, paddle.to_tensor(7 / 3, dtype="float64").astype("float32")):
        with criterion.divided_by(divisor):
            losses.append(float(criterion(logits_BSV, labels_BS)))
            assert not criterion.state_dict()
            with criterion.divided_by(2.0):  # like an evaluation between two steps
                assert float(criterion(logits_BSV, labels_BS)) != losses[-1]
            assert float(criterion(logits_BSV, labels_BS)) == losses[-1]
    assert losses[0] == losses[1]
    assert float(criterion(logits_BSV, labels_BS)) == pytest.approx(losses[0] * 7 / 3 / 10)
