"""A context in which a network generates, during training or alone, and after which it is unchanged."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from paddle_llm.generation.static.program import StaticProgram
from paddle_llm.parallel.zero.stage3 import materialized


@contextmanager
def generating(model: Any) -> Iterator[None]:
    """Put a network into evaluation mode, with the logits of the whole vocabulary on every tensor-parallel rank.

    The fused rotary embedding is off: PaddleNLP 3.0.0b4 asserts that it runs without a cache of keys. The plain one
    computes the same.

    With sharding stage 3, each rank holds all weights meanwhile (collective over the sharding group). Gathering them
    for each token would dominate the time.
    """
    if isinstance(model, StaticProgram):  # it has no other mode
        yield
        return
    layers = model.sublayers(include_self=True)
    modes = [(layer, layer.training) for layer in layers]
    fused = [layer for layer in layers if getattr(layer, "use_fused_rope", False)]
    config, parallel_output = model.config, model.config.tensor_parallel_output
    model.eval()
    config.tensor_parallel_output = False
    for layer in fused:
        layer.use_fused_rope = False
    try:
        with materialized(model):
            yield
    finally:
        config.tensor_parallel_output = parallel_output
        for layer in fused:
            layer.use_fused_rope = True
        for layer, training in modes:
            layer.training = training
