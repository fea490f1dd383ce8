"""Names and shapes of all weights of a network, without allocating them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from paddle_llm.config.layout import Layout
from paddle_llm.families import Family
from paddle_llm.models.build import build_network
from paddle_llm.models.weights.names import canonical_parameters

if TYPE_CHECKING:
    from paddlenlp.transformers import PretrainedConfig


def weight_shapes(config: PretrainedConfig, family: Family) -> dict[str, tuple[int, ...]]:
    """Return the shape ([in, out] for a matrix) of every weight by canonical name, without a tied head.

    Args:
        config: PaddleNLP's configuration of the model in one process.
        family: Its family.
    """
    import paddle

    with paddle.LazyGuard(), initialization_disabled():
        model = build_network(config, Layout(), family, dtype="float32")
    return {name: tuple(weight.shape) for name, weight in canonical_parameters(model, family.name)}


@contextmanager
def initialization_disabled() -> Iterator[None]:
    """Keep PaddleNLP's constructors from filling the weights, which are not allocated."""
    from paddlenlp.transformers.model_utils import PretrainedModel

    before = PretrainedModel.init_weights
    PretrainedModel.init_weights = lambda self: None
    try:
        yield
    finally:
        PretrainedModel.init_weights = before
