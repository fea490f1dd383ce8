"""Perplexity: the exponential of the mean negative log-likelihood of the scored tokens.

Shapes: B rows, S positions, V vocabulary, M scored positions.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from paddle_llm.core.artifacts import IGNORE_INDEX
from paddle_llm.core.errors import UserError
from paddle_llm.generation.evaluation.windows import ScoredSample

if TYPE_CHECKING:
    import paddle

    from paddle_llm.models.protocols import LanguageModel

_CHUNK = 256  # positions whose log-probabilities are computed together


@dataclass(frozen=True)
class Perplexity:
    """The result over all samples.

    Attributes:
        value: Perplexity.
        scored: Number of scored tokens.
        tokens_per_second: Tokens read per second.
    """

    value: float
    scored: int
    tokens_per_second: float


def measure_perplexity(
    model: LanguageModel,
    family: str,
    samples: Sequence[ScoredSample],
    batch_size: int,
    on_batch: Callable[[int], None] | None = None,
) -> Perplexity:
    """Compute the perplexity of a network. Use it within `generating(model)`.

    Args:
        model: The network.
        family: Name of its family.
        samples: Samples, at least one.
        batch_size: Number of samples read together.
        on_batch: Function called after each batch with the number of samples so far.

    Raises:
        UserError: If a log-likelihood is not finite.
    """
    import paddle

    from paddle_llm.models.incremental import IncrementalNetwork

    # Samples of similar length need little padding.
    order = sorted(range(len(samples)), key=lambda number: len(samples[number].prompt))
    total, started = 0.0, time.perf_counter()
    for start in range(0, len(order), batch_size):
        batch = [samples[number] for number in order[start : start + batch_size]]
        with paddle.no_grad():
            logits_BSV = IncrementalNetwork(model, family, [sample.prompt for sample in batch], 0).read_all()
            for row, sample in enumerate(batch):  # shorter rows are padded on the left
                total += _negative_log_likelihood(logits_BSV[row, -len(sample.targets_S) :], sample.targets_S)
        if on_batch is not None:
            on_batch(start + len(batch))
    seconds = time.perf_counter() - started
    if not math.isfinite(total):
        raise UserError(
            "The log-likelihood of the input is not finite: the model computes NaN or infinity. Check its weights with "
            "paddle-llm check-model."
        )
    scored, read = sum(sample.scored for sample in samples), sum(len(sample.prompt) for sample in samples)
    return Perplexity(_exponential(total / scored), scored, read / seconds)


def _negative_log_likelihood(logits_SV: paddle.Tensor, targets_S: np.ndarray) -> float:
    """Return the sum over the scored positions, with log-probabilities in fp32 and their sum in fp64."""
    import paddle

    scored = np.flatnonzero(targets_S != IGNORE_INDEX)
    total = 0.0
    for start in range(0, len(scored), _CHUNK):
        chosen = scored[start : start + _CHUNK]
        logits_MV = paddle.gather(logits_SV, paddle.to_tensor(chosen)).astype("float32")
        targets_M1 = paddle.to_tensor(targets_S[chosen]).unsqueeze(-1)
        likely_M = paddle.take_along_axis(logits_MV, targets_M1, axis=-1).squeeze(-1)
        # Not softmax, which on a CPU turns a row of NaN into equal probabilities (Paddle 3.3.1).
        total += float((paddle.logsumexp(logits_MV, axis=-1) - likely_M).astype("float64").sum())
    return total


def _exponential(mean: float) -> float:
    return math.exp(mean) if mean < 700 else math.inf
