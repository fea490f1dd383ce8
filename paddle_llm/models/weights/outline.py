"""A network without its weights: which there are, in which order and of which shapes, at no cost in memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from paddle_llm.config.layout import Layout
from paddle_llm.families import Family
from paddle_llm.models.build import build_network
from paddle_llm.models.weights.names import canonical_parameters


def outline(config: Any, family: Family) -> dict[str, tuple[int, ...]]:
    """Canonical name -> shape ([in, out] for a matrix) of every weight, in the network's order; a tied head is not among them.

    Args:
        config: PaddleNLP's configuration of the model, of one process.
    """
    import paddle

    with paddle.LazyGuard(), _nothing_filled():
        model = build_network(config, Layout(), family, dtype="float32")
    return {name: tuple(weight.shape) for name, weight in canonical_parameters(model, family.name)}


@contextmanager
def _nothing_filled() -> Iterator[None]:
    """PaddleNLP's constructors fill weights with numbers, which there is no memory for."""
    from paddlenlp.transformers.model_utils import PretrainedModel

    before = PretrainedModel.init_weights
    PretrainedModel.init_weights = lambda self: None
    try:
        yield
    finally:
        PretrainedModel.init_weights = before
