"""ChatGLM-6B, ChatGLM2/3 and GLM against their published formulas, implemented a second time in numpy.

Hugging Face's transformers has no classes for them (its "glm" is another network), their own code comes with the weights.
From the papers (GLM: Du et al. 2022; GLM-130B: Zeng et al. 2023, which ChatGLM-6B follows) and the modeling files that the
authors publish beside the weights. Weights are taken under Hugging Face's names, in Hugging Face's layout ([out, in]).

Shapes: S positions, N heads, D head width, H = N x D.
"""

from __future__ import annotations

import numpy as np
import paddle
import pytest

from tests.helpers.models.networks import WRITERS, as_hugging_face, batch, build, weights

LENGTH, HEADS, LAYERS, WIDTH = 12, 4, 4, 16


@pytest.fixture
def network(tmp_path, request):
    """Return the network with large random weights and biases, and these in float64 by Hugging Face's names."""
    family = request.param
    model = build(WRITERS[family](tmp_path), length=LENGTH)
    draw = np.random.default_rng(3)
    with paddle.no_grad():
        for parameter in model.parameters():
            values = draw.normal(0, 0.2, parameter.shape) + (parameter.ndim == 1)
            parameter.set_value(paddle.to_tensor(values.astype("float32")))
    model.eval()
    named = as_hugging_face(weights(model, family), family)
    return model, {name: value.astype(np.float64) for name, value in named.items()}


def linear(x, named, name):
    return x @ named[f"{name}.weight"].T + named.get(f"{name}.bias", 0.0)


def layer_norm(x, named, name):
    normal = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return normal * named[f"{name}.weight"] + named[f"{name}.bias"]


def rms_norm(x, named, name):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * named[f"{name}.weight"]


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def attention(q_SND, k_SND, v_SND, seen_SS):
    scores = np.einsum("snd,tnd->nst", q_SND, k_SND) / np.sqrt(q_SND.shape[-1])
    scores = np.where(seen_SS, scores, -np.inf)
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    shares /= shares.sum(-1, keepdims=True)
    return np.einsum("nst,tnd->snd", shares, v_SND).reshape(len(q_SND), -1)


def angles(position_S, width):
    """[S, width / 2]"""
    return position_S[:, None] / 10000 ** (np.arange(0, width, 2) / width)


def rotate_pairs(x_SND, position_S):
    """Rotate dimensions 2i and 2i + 1 of the first half of the head together; the second half is not rotated (ChatGLM2)."""
    half = x_SND.shape[-1] // 2
    turn = np.exp(1j * angles(position_S, half))[:, None]
    turned = (x_SND[..., 0:half:2] + 1j * x_SND[..., 1:half:2]) * turn
    pairs = np.stack([turned.real, turned.imag], -1).reshape(*x_SND.shape[:-1], half)
    return np.concatenate([pairs, x_SND[..., half:]], -1)


def rotate_halves(x_SND, position_S):
    """Rotate dimensions i and i + width / 2 together."""
    half = x_SND.shape[-1] // 2
    turned = (x_SND[..., :half] + 1j * x_SND[..., half:]) * np.exp(1j * angles(position_S, 2 * half))[:, None]
    return np.concatenate([turned.real, turned.imag], -1)


def chatglm2(named, ids):
    place, seen = np.arange(len(ids)), np.tri(len(ids), dtype=bool)
    x = named["transformer.embedding.word_embeddings.weight"][ids]
    for number in range(LAYERS):
        layer = f"transformer.encoder.layers.{number}"
        qkv = linear(rms_norm(x, named, f"{layer}.input_layernorm"), named, f"{layer}.self_attention.query_key_value")
        groups = (qkv.shape[-1] // WIDTH - HEADS) // 2
        q, k, v = np.split(qkv.reshape(len(ids), -1, WIDTH), [HEADS, HEADS + groups], axis=1)
        k, v = (np.repeat(part, HEADS // groups, axis=1) for part in (rotate_pairs(k, place), v))
        mixed = attention(rotate_pairs(q, place), k, v, seen)
        x = x + linear(mixed, named, f"{layer}.self_attention.dense")
        up = linear(rms_norm(x, named, f"{layer}.post_attention_layernorm"), named, f"{layer}.mlp.dense_h_to_4h")
        gate, up = np.split(up, 2, axis=-1)
        x = x + linear(gate / (1 + np.exp(-gate)) * up, named, f"{layer}.mlp.dense_4h_to_h")
    x = rms_norm(x, named, "transformer.encoder.final_layernorm")
    return linear(x, named, "transformer.output_layer")


def chatglm(named, ids, positions, prefix):
    """Residuals are added after the norm, scaled by sqrt(2 layers). One half of the head is rotated by position, one by block position."""
    seen, alpha = seen_with_prefix(len(ids), prefix), np.sqrt(2 * LAYERS)
    x = named["transformer.word_embeddings.weight"][ids]
    for number in range(LAYERS):
        layer = f"transformer.layers.{number}"
        normal = layer_norm(x, named, f"{layer}.input_layernorm")
        qkv = linear(normal, named, f"{layer}.attention.query_key_value").reshape(len(ids), HEADS, 3 * WIDTH)
        q, k, v = np.split(qkv, 3, axis=-1)
        q, k = (
            np.concatenate(
                [rotate_halves(half, at) for half, at in zip(np.split(part, 2, -1), positions, strict=True)], -1
            )
            for part in (q, k)
        )
        x = alpha * normal + linear(attention(q, k, v, seen), named, f"{layer}.attention.dense")
        normal = layer_norm(x, named, f"{layer}.post_attention_layernorm")
        x = alpha * normal + linear(
            gelu(linear(normal, named, f"{layer}.mlp.dense_h_to_4h")), named, f"{layer}.mlp.dense_4h_to_h"
        )
    return layer_norm(x, named, "transformer.final_layernorm") @ named["transformer.word_embeddings.weight"].T


def glm(named, ids, positions, prefix):
    """Positions in the text and in the block are learned. One matrix has all queries, then all keys, then all values."""
    seen = seen_with_prefix(len(ids), prefix)
    x = named["glm.word_embeddings.weight"][ids]
    x = x + named["glm.transformer.position_embeddings.weight"][positions[0]]
    x = x + named["glm.transformer.block_position_embeddings.weight"][positions[1]]
    for number in range(LAYERS):
        layer = f"glm.transformer.layers.{number}"
        normal = layer_norm(x, named, f"{layer}.input_layernorm")
        qkv = linear(normal, named, f"{layer}.attention.query_key_value")
        q, k, v = (part.reshape(len(ids), HEADS, WIDTH) for part in np.split(qkv, 3, axis=-1))
        x = x + linear(attention(q, k, v, seen), named, f"{layer}.attention.dense")
        normal = layer_norm(x, named, f"{layer}.post_attention_layernorm")
        x = x + linear(gelu(linear(normal, named, f"{layer}.mlp.dense_h_to_4h")), named, f"{layer}.mlp.dense_4h_to_h")
    return layer_norm(x, named, "glm.transformer.final_layernorm") @ named["glm.word_embeddings.weight"].T


def seen_with_prefix(length, prefix):
    return np.tri(length, dtype=bool) | (np.arange(length) < prefix)


@pytest.mark.parametrize("network", ["chatglm_v2"], indirect=True)
def test_chatglm2(network):
    model, named = network
    ids = batch("chatglm_v2", length=LENGTH)["input_ids"]
    assert_logits(model(ids)[0], [chatglm2(named, row) for row in ids.numpy()])


@pytest.mark.parametrize(("network", "published"), [("chatglm", chatglm), ("glm", glm)], indirect=["network"])
def test_prefix_language_models(network, published):
    model, named = network
    inputs = batch("chatglm", length=LENGTH)
    inputs.pop("labels")
    expected = [
        published(named, ids, positions, int(prefix[0]))
        for ids, positions, prefix in zip(
            *(inputs[name].numpy() for name in ("input_ids", "position_ids", "attention_mask")), strict=True
        )
    ]
    assert_logits(model(**inputs)[0], expected)


@pytest.mark.parametrize("network", ["glm"], indirect=True)
def test_glm_without_a_mask_looks_backwards(network):
    model, named = network
    ids = batch("glm", length=LENGTH)["input_ids"]
    positions = np.stack([np.arange(LENGTH), np.zeros(LENGTH, int)])
    assert_logits(model(ids)[0], [glm(named, row, positions, 0) for row in ids.numpy()])


def assert_logits(found, expected):
    expected = np.stack(expected)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5 * np.abs(expected).max())
