"""Switches a network to generation for the duration of a context, also during training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from paddle_llm.generation.static.program import StaticProgram
from paddle_llm.parallel.zero.stage3 import materialized

if TYPE_CHECKING:
    from paddle_llm.models.protocols import LanguageModel


@contextmanager
def generating(model: LanguageModel | StaticProgram) -> Iterator[None]:
    """Put a network into evaluation mode, with the logits of the whole vocabulary on every tensor-parallel rank.

    The modes of all layers are restored afterwards. The fused rotary embedding is off, because PaddleNLP 3.0.0b4
    asserts that it runs without a cache; the plain one computes the same values.

    With sharding stage 3, all ranks of the sharding group must enter the context together. Each rank then holds all
    weights, because gathering them for each token would dominate the time.
    """
    if isinstance(model, StaticProgram):  # it has only this mode
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
