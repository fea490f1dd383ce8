"""Names and shapes of all weights of a network without memory for them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from paddle_llm.config.layout import Layout
from paddle_llm.families import Family
from paddle_llm.models.build import build_network
from paddle_llm.models.weights.names import canonical_parameters


def outline(config: Any, family: Family) -> dict[str, tuple[int, ...]]:
    """Return the shape ([in, out] for a matrix) of every weight by canonical name, without a tied head.

    Args:
        config: PaddleNLP's configuration of the model in one process.
        family: Its family.
    """
    import paddle

    with paddle.LazyGuard(), _nothing_filled():
        model = build_network(config, Layout(), family, dtype="float32")
    return {name: tuple(weight.shape) for name, weight in canonical_parameters(model, family.name)}


@contextmanager
def _nothing_filled() -> Iterator[None]:
    """Stop PaddleNLP's constructors from filling weights, for which there is no memory."""
    from paddlenlp.transformers.model_utils import PretrainedModel

    before = PretrainedModel.init_weights
    PretrainedModel.init_weights = lambda self: None
    try:
        yield
    finally:
        PretrainedModel.init_weights = before
