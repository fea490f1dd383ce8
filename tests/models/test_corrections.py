"""What is mended in PaddleNLP's networks, each against the plain computation. (Layouts: test_layouts.py.)"""

from __future__ import annotations

import copy
from types import SimpleNamespace

import numpy as np
import paddle

from paddle_llm.models.corrections import correct_models, correct_network
from tests import tiny
from tests.models.building import batch, build


def test_chatglm2s_flash_attention_does_not_mix_samples(tmp_path):
    plain = build(tiny.write_chatglm2(tmp_path))
    flash = build(tmp_path)
    for layer in flash.sublayers():
        if hasattr(layer, "core_attention"):
            layer.config = copy.copy(layer.config)
            layer.config.use_flash_attention = True
    uncorrected = float(flash(**batch("chatglm_v2"))[0])
    correct_network(flash, "chatglm_v2")
    losses = [model(**batch("chatglm_v2"))[0] for model in (plain, flash)]
    for loss in losses:
        loss.backward()
    assert abs(float(losses[0]) - float(losses[1])) < 1e-6
    assert abs(uncorrected - float(losses[0])) > 1e-5, "PaddleNLP has mended it: take the correction out"
    for (name, one), (_, two) in zip(plain.named_parameters(), flash.named_parameters(), strict=True):
        np.testing.assert_allclose(one.grad.numpy(), two.grad.numpy(), atol=1e-6, err_msg=name)


def test_chatglm2s_pipeline_takes_the_cosine_before_it_rounds():
    from paddlenlp.transformers.chatglm_v2 import modeling_pp

    correct_models()
    exact = modeling_pp.forward_impl(SimpleNamespace(default_dtype="float32"), 2048, 32)
    rounded = modeling_pp.forward_impl(SimpleNamespace(default_dtype="bfloat16"), 2048, 32)
    assert float((exact - rounded.astype("float32")).abs().max()) < 2**-8


def test_correcting_twice_does_nothing():
    from paddlenlp.transformers.chatglm import modeling

    correct_models()
    forward = modeling.ChatGLMForCausalLM.forward
    correct_models()
    assert modeling.ChatGLMForCausalLM.forward is forward


def test_chatglm_without_our_criterion_is_paddlenlps(tmp_path):
    """Whose mean is over all positions, those without a label too."""
    network, inputs = build(tiny.write_chatglm(tmp_path)), batch("chatglm")
    ours = float(network(**inputs)[0])
    del network.criterion
    share = float((inputs["labels"] != -100).astype("float32").mean())
    assert abs(float(network(**inputs)[0]) - ours * share) < 1e-5
    with paddle.no_grad():
        assert network(**inputs, return_dict=True).loss is not None
