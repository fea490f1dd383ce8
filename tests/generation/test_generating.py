"""The state of a network while it generates during training, and afterwards."""

from __future__ import annotations

from paddle_llm.generation.eval_mode import generating
from tests.helpers.models import tiny
from tests.helpers.models.networks import build


def test_the_fused_rotary_embedding_is_off_while_a_network_generates(tmp_path):
    """PaddleNLP's fused one asserts that there is no cache, so the second token would end the training."""
    model = build(tiny.write_llama(tmp_path, num_hidden_layers=2))
    layers = [layer.self_attn for layer in model.llama.layers]
    layers[0].use_fused_rope = True  # a CPU has no such kernel
    with generating(model):
        assert not any(layer.use_fused_rope for layer in layers)
    assert [layer.use_fused_rope for layer in layers] == [True, False]
