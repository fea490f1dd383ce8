"""Corrections of PaddleNLP's networks, compared with the plain computation (layouts: test_layouts.py)."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import numpy as np
import paddle

from paddle_llm.models.patches import apply, apply_to_network
from tests.helpers.models import tiny
from tests.helpers.models.networks import batch, build


def test_chatglm2s_flash_attention_does_not_mix_samples(tmp_path):
    plain = build(tiny.write_chatglm2(tmp_path))
    flash = build(tmp_path)
    for layer in flash.sublayers():
        if hasattr(layer, "core_attention"):
            layer.config = copy.copy(layer.config)
            layer.config.use_flash_attention = True
    uncorrected = float(flash(**batch("chatglm_v2"))[0])
    apply_to_network("chatglm_v2", flash)
    losses = [model(**batch("chatglm_v2"))[0] for model in (plain, flash)]
    for loss in losses:
        loss.backward()
    assert abs(float(losses[0]) - float(losses[1])) < 1e-6
    assert abs(uncorrected - float(losses[0])) > 1e-5, "PaddleNLP has fixed it: remove the correction"
    for (name, one), (_, two) in zip(plain.named_parameters(), flash.named_parameters(), strict=True):
        np.testing.assert_allclose(one.grad.numpy(), two.grad.numpy(), atol=1e-6, err_msg=name)


def test_chatglm2s_pipeline_takes_the_cosine_before_it_rounds():
    from paddlenlp.transformers.chatglm_v2 import modeling_pp

    apply("chatglm_v2", "cpu")
    exact = modeling_pp.forward_impl(SimpleNamespace(default_dtype="float32"), 2048, 32)
    rounded = modeling_pp.forward_impl(SimpleNamespace(default_dtype="bfloat16"), 2048, 32)
    assert float((exact - rounded.astype("float32")).abs().max()) < 2**-8


def test_a_second_correction_changes_nothing():
    from paddlenlp.transformers.chatglm import modeling

    apply("chatglm", "cpu")
    forward = modeling.ChatGLMForCausalLM.forward
    apply("chatglm", "cpu")
    assert modeling.ChatGLMForCausalLM.forward is forward


def test_chatglm_without_our_criterion_equals_paddlenlp(tmp_path):
    """The mean of PaddleNLP's criterion is over all positions, also those without a label."""
    network, inputs = build(tiny.write_chatglm(tmp_path)), batch("chatglm")
    ours = float(network(**inputs)[0])
    del network.criterion
    share = float((inputs["labels"] != -100).astype("float32").mean())
    assert abs(float(network(**inputs)[0]) - ours * share) < 1e-5
    with paddle.no_grad():
        assert network(**inputs, return_dict=True).loss is not None


def test_chatglm2s_rotary_embedding_keeps_the_type_of_queries_and_keys():
    """Under O1 the table has more bits than queries and keys (here float64 and float32), and Paddle selects its kernel by type."""
    from paddlenlp.transformers.chatglm_v2 import modeling

    apply("chatglm_v2", "cpu")
    table = modeling.RotaryEmbedding(8)(5).astype("float64").unsqueeze(1)
    assert modeling.apply_rotary_pos_emb(paddle.randn([5, 2, 4, 16]), table).dtype == paddle.float32


def test_chatglm2s_pipeline_sends_no_mask_of_whole_rows(tmp_path):
    """Stages send a number instead, from which each layer makes the mask that PaddleNLP would send."""
    from paddlenlp.transformers.chatglm_v2 import modeling_pp

    model = build(tiny.write_chatglm2(tmp_path))
    inputs = batch("chatglm_v2")["input_ids"]
    embedding, layer = modeling_pp.EmbeddingPipe(model.config), modeling_pp.GLMBlockPipe(model.config, 1)
    embedding.set_state_dict(model.chatglm_v2.embedding.state_dict())
    layer.set_state_dict(model.chatglm_v2.encoder.layers[0].state_dict())
    hidden, mask, positions, table = embedding(inputs)
    assert mask.shape == [1, 1, 1, 1]
    full = embedding((inputs, paddle.ones(inputs.shape, "bool")))
    assert full[1].shape == [2, 1, 16, 16], "PaddleNLP sends the mask in another form: look at the correction again"
    np.testing.assert_array_equal(table.numpy(), full[3].numpy())
    np.testing.assert_array_equal(layer((hidden, mask, positions, table))[0].numpy(), layer(full)[0].numpy())
