"""BLOOM's masks do not grow with the batch, and are the same in one process and in a pipeline."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

from paddle_llm.models.patches.bloom import layer_mask
from tests.helpers.models import tiny
from tests.helpers.models.networks import batch, build


def masks_of_layers(model, inputs) -> list[paddle.Tensor]:
    """Return the list of the masks that the attention of each layer receives."""
    found = []
    for block in model.bloom.h:
        block.self_attention.register_forward_pre_hook(lambda layer, args, named: found.append(named), with_kwargs=True)
    with paddle.no_grad():
        model(**inputs)
    return [named["attention_mask"] for named in found]


def test_whole_rows_share_one_mask(tmp_path):
    """PaddleNLP makes a mask for each row and head: [B x N, S, S]."""
    model, inputs = build(tiny.write_bloom(tmp_path)), batch("bloom", rows=3)
    masks = masks_of_layers(model, inputs)
    assert [mask.shape for mask in masks] == [[16, 16]] * 4


@pytest.mark.parametrize("flash", [False, True])
def test_padding_is_hidden_in_a_pipeline_too(tmp_path, flash):
    """The mask of a pipeline's layer [B, S] is that of the network in one process."""
    from paddle_llm.models.patches.bloom_pipeline import attention_biases

    config = build(tiny.write_bloom(tmp_path)).config
    config.use_flash_attention = flash
    tokens = np.array([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]], bool)
    alibi, mask = attention_biases(paddle.zeros([2, 5, 64]), paddle.to_tensor(tokens), config)
    seen = np.tril(np.ones((5, 5), bool)) & tokens[:, None]
    slopes = np.array([0.25, 0.0625, 0.015625, 0.00390625])  # for 4 heads (Press et al. 2022)
    position = (tokens.cumsum(1) - 1) * tokens
    expected = slopes[:, None] * position[:, None]
    np.testing.assert_allclose(alibi.numpy(), expected.reshape(8, 1, 5))
    found = mask.numpy().reshape(2, 4, 5, 5)
    assert (found[~np.broadcast_to(seen[:, None], found.shape)] < -1e30).all()
    wanted = np.where(seen[:, None], expected[:, :, None] if flash else 0.0, 0.0)
    np.testing.assert_allclose(np.where(seen[:, None], found, 0.0), np.broadcast_to(wanted, found.shape))


def test_a_mask_of_visible_positions_is_accepted(tmp_path):
    config = build(tiny.write_bloom(tmp_path)).config
    mask = paddle.ones([2, 1, 3, 3], "bool")
    mask[0, 0, 2, 0] = False
    found = layer_mask(mask, 3, 3, config, paddle.float32).reshape([2, 4, 3, 3])
    assert float(found[0, 0, 2, 0]) < -1e30 and float(found[1, 0, 2, 0]) == 0 and float(found[1, 0, 0, 1]) < -1e30
