"""A context in which a network generates, in the middle of a training or alone, and is afterwards what it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from paddle_llm.generation.static_network import StaticModel
from paddle_llm.parallel.sharded_weights import resident


@contextmanager
def generating(model: Any) -> Iterator[None]:
    """Evaluation mode; logits of the whole vocabulary on every tensor-parallel rank; all weights at hand.

    With sharding stage 3 each rank then holds all weights (collective over the sharding group), as without sharding: a
    network that brought them anew for each token would spend its time on that.
    """
    if isinstance(model, StaticModel):  # it can do nothing else
        yield
        return
    modes = [(layer, layer.training) for layer in model.sublayers(include_self=True)]
    config, split = model.config, model.config.tensor_parallel_output
    model.eval()
    config.tensor_parallel_output = False
    try:
        with resident(model):
            yield
    finally:
        config.tensor_parallel_output = split
        for layer, training in modes:
            layer.training = training
