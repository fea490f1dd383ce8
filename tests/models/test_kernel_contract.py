"""Calls of Paddle's attention kernels: their arguments, the conditions of each kernel, and what PaddleNLP passes itself."""

from __future__ import annotations

from types import SimpleNamespace
from unittest import mock

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest

from paddle_llm.models.patches import apply, apply_to_network
from paddle_llm.models.patches.shared import attention_kernels
from paddle_llm.models.patches.shared.attention_kernels import added_mask, fused_attention, has_flash_kernels
from paddle_llm.models.patches.shared.packed_rows import sample_ends
from tests.helpers.gpu.kernels import Kernels, on_fake_gpu, softmax_attention, without_cpu_kernels
from tests.helpers.models import tiny
from tests.helpers.models.networks import build


def states(length: int = 5, total: int = 5, dtype: str = "float32") -> list[paddle.Tensor]:
    paddle.seed(0)
    shapes = ([2, length, 4, 8], [2, total, 2, 8], [2, total, 2, 8])
    return [paddle.randn(shape).astype(dtype) for shape in shapes]


def backwards(length: int, total: int) -> paddle.Tensor:
    return paddle.tril(paddle.ones([length, total], "bool"), diagonal=total - length)


def test_states_and_mask_get_the_type_of_the_values():
    """Paddle selects its kernel by type. float64 is used here in the role of float32 beside 16 bits under O1."""
    query, key, value = states()
    mask = added_mask(backwards(5, 5), paddle.float64).expand([2, 1, 5, 5])
    with on_fake_gpu(Kernels()):
        found = fused_attention(query.astype("float64"), key.astype("float64"), value, mask)
    np.testing.assert_allclose(found, softmax_attention(query, key, value, None, backwards(5, 5)), atol=1e-6)


@pytest.mark.parametrize(("length", "total", "kernel"), [(5, 5, "causal"), (3, 5, "masked"), (1, 5, "masked")])
def test_causal_queries_are_the_last_positions(length, total, kernel):
    kernels = Kernels()
    with on_fake_gpu(kernels):
        found = fused_attention(*states(length, total), is_causal=True)
    expected = softmax_attention(*states(length, total), None, backwards(length, total))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert set(kernels.calls) == {kernel}


def test_a_mask_replaces_the_causal_one_and_is_shared_by_rows():
    mask = paddle.ones([1, 1, 5, 5], "bool")
    with on_fake_gpu(Kernels()):
        found = fused_attention(*states(), attn_mask=mask, is_causal=True)
    np.testing.assert_allclose(found, softmax_attention(*states(), None, None), atol=1e-6)


def test_a_mask_stays_finite_in_fewer_bits():
    lowest = added_mask(paddle.full([1], paddle.finfo(paddle.float32).min), paddle.float16)
    assert lowest.numpy() == np.finfo(np.float16).min


@pytest.mark.parametrize(
    ("card", "width", "taken"),
    [
        ({}, 128, True),
        ({"capability": (8, 0)}, 128, True),
        ({"capability": (7, 5)}, 128, False),
        ({"half": False}, 128, False),
        ({}, 512, False),
        ({}, 12, False),
    ],
)
def test_flash_kernels_need_a_supported_card_type_and_width(card, width, taken):
    tensor = paddle.zeros([1, 2, 1, width])
    assert not has_flash_kernels(tensor), "on a CPU"
    with on_fake_gpu(Kernels(**card)):
        assert has_flash_kernels(tensor) == taken


def test_a_build_without_the_kernels_has_none():
    with on_fake_gpu(Kernels()), mock.patch.object(attention_kernels, "built_with_flash_kernels", lambda: False):
        assert not has_flash_kernels(paddle.zeros([1, 2, 1, 128]))


# ---- layers of pipelines --------------------------------------------------------------------------------------------


def compare_layers(plain, flash, masks, run) -> None:
    flash.set_state_dict(plain.state_dict())
    for mask in masks:
        with without_cpu_kernels():
            expected = run(plain, mask)
            with on_fake_gpu(Kernels()):
                found = run(flash, mask)
        np.testing.assert_allclose(found.numpy(), expected.numpy(), atol=1e-5)


def test_a_layer_of_blooms_pipeline_computes_the_same_with_flash_attention(tmp_path):
    from paddle_llm.models.patches.bloom_pipeline import BloomBlockPipe

    layers, hidden = [], paddle.randn([2, 6, 64])
    for flash in (False, True):
        config = build(tiny.write_bloom(tmp_path)).config
        config.use_flash_attention = flash
        layers.append(BloomBlockPipe(config, 0))
    padded = paddle.to_tensor([[False, True, True, True, True, True], [True] * 6])
    packed = sample_ends(paddle.to_tensor([[4, 2], [3, 3]]), 6)

    def run(layer, mask):
        output = layer(hidden if mask is None else (hidden, mask))
        output = output if mask is None else output[0]
        return output[:, 1:]  # the output at the padding is not compared

    compare_layers(*layers, [None, padded, packed], run)


def test_a_layer_of_chatglm2s_pipeline_computes_the_same_with_flash_attention(tmp_path):
    from paddlenlp.transformers.chatglm_v2 import modeling_pp

    layers = []
    for flash in (False, True):
        config = build(tiny.write_chatglm2(tmp_path)).config
        config.use_flash_attention = flash
        embedding, layer = modeling_pp.EmbeddingPipe(config), modeling_pp.GLMBlockPipe(config, 1)
        apply_to_network("chatglm_v2", layer)
        layers.append(layer)
    tokens = paddle.randint(4, 100, [2, 6])
    packed = sample_ends(paddle.to_tensor([[4, 2], [3, 3]]), 6)
    compare_layers(*layers, [None, packed], lambda layer, mask: layer(embedding((tokens, mask)))[0])


# ---- behaviour of PaddleNLP 3.0.0b4: if one of these tests fails, remove the replacement -----------------------------------


def test_paddlenlp_requests_a_causal_mask_in_addition_to_another_mask(monkeypatch):
    from paddlenlp.transformers.llama import fusion_ops

    apply("llama", "cpu")
    given = {}
    monkeypatch.setattr(
        fusion_ops,
        "F",
        SimpleNamespace(scaled_dot_product_attention=lambda *args, **named: given.update(named) or args[0]),
    )
    query, key, value = states()
    fusion_ops.fusion_flash_attention(query, SimpleNamespace(context_parallel_degree=1), key, value, "mask", False)
    assert given["is_causal"] and given["attn_mask"] == "mask"


def test_paddlenlp_treats_a_mask_of_one_row_as_causal():
    from paddlenlp.transformers.llama import modeling as llama
    from paddlenlp.transformers.qwen2 import modeling as qwen2

    apply("llama", "cpu")
    apply("qwen2", "cpu")
    row = paddle.to_tensor([-1e30, 0.0, 0.0]).reshape([1, 1, 1, 3])
    for modeling in (llama, qwen2):
        assert modeling.is_casual_mask.__wrapped__(row)
        assert not modeling.is_casual_mask(row)


def test_paddlenlps_masks_grow_with_the_batch(tmp_path):
    bloom = build(tiny.write_bloom(tmp_path)).bloom
    prepare = bloom._prepare_attn_mask.__wrapped__
    assert prepare(bloom, paddle.ones([3, 5], "bool"), (3, 5), 0, 4).shape == [3 * 4, 5, 5]


def test_paddles_function_ignores_a_mask_if_causal_is_set():
    query, key, value = states()
    first_only = paddle.where(paddle.arange(5) == 0, 0.0, -1e30).expand([2, 1, 5, 5])
    both = F.scaled_dot_product_attention(query, key, value, attn_mask=first_only, is_causal=True)
    np.testing.assert_allclose(both, F.scaled_dot_product_attention(query, key, value, is_causal=True))
