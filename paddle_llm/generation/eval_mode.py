"""A context in which a network generates, in the middle of a training or alone, and is afterwards what it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from paddle_llm.generation.static_network import StaticModel
from paddle_llm.parallel.zero.stage3 import resident


@contextmanager
def generating(model: Any) -> Iterator[None]:
    """Evaluation mode; logits of the whole vocabulary on every tensor-parallel rank; all weights at hand.

    The fused rotary embedding is off: PaddleNLP 3.0.0b4 asserts that it has no cache of keys. The plain one computes the same.

    With sharding stage 3 each rank then holds all weights (collective over the sharding group), as without sharding: a
    network that brought them anew for each token would spend its time on that.
    """
    if isinstance(model, StaticModel):  # it can do nothing else
        yield
        return
    layers = model.sublayers(include_self=True)
    modes = [(layer, layer.training) for layer in layers]
    fused = [layer for layer in layers if getattr(layer, "use_fused_rope", False)]
    config, split = model.config, model.config.tensor_parallel_output
    model.eval()
    config.tensor_parallel_output = False
    for layer in fused:
        layer.use_fused_rope = False
    try:
        with resident(model):
            yield
    finally:
        config.tensor_parallel_output = split
        for layer in fused:
            layer.use_fused_rope = True
        for layer, training in modes:
            layer.training = training
