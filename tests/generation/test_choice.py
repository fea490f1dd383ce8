"""Sampling and the repetition penalty."""

from __future__ import annotations

import numpy as np
import pytest

from paddle_llm.generation.decoding.sampling import RepetitionPenalty, TokenChooser
from paddle_llm.generation.options import DecodeStrategy

PROBABILITIES = np.array([0.05, 0.4, 0.25, 0.2, 0.1])
DRAWS = 4000


def shares(strategy: DecodeStrategy, probabilities=PROBABILITIES) -> np.ndarray:
    """Return the share of texts in which each token is drawn."""
    import paddle

    logits = paddle.to_tensor(np.log(np.tile(probabilities, (DRAWS, 1))).astype(np.float32))
    tokens = TokenChooser(strategy, range(DRAWS))(logits).numpy()
    return np.bincount(tokens, minlength=len(probabilities)) / DRAWS


def cut(probabilities: np.ndarray, kept: list[int]) -> np.ndarray:
    only = np.isin(np.arange(len(probabilities)), kept) * probabilities
    return only / only.sum()


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        (DecodeStrategy(temperature=1.0), PROBABILITIES),
        (DecodeStrategy(temperature=0.5), PROBABILITIES**2 / (PROBABILITIES**2).sum()),
        (DecodeStrategy(top_k=2), cut(PROBABILITIES, [1, 2])),
        (DecodeStrategy(temperature=1.0, top_k=0), PROBABILITIES),
        (DecodeStrategy(top_k=100), PROBABILITIES),
        (DecodeStrategy(top_p=0.5), cut(PROBABILITIES, [1, 2])),  # 0.4 alone is not enough
        (DecodeStrategy(top_p=1e-6), cut(PROBABILITIES, [1])),
        (DecodeStrategy(top_p=1.0), PROBABILITIES),
        (DecodeStrategy(top_k=3, top_p=0.7), cut(PROBABILITIES, [1, 2])),  # 0.65 of the 0.85 that top_k keeps
    ],
)
def test_tokens_are_drawn_with_the_requested_probabilities(strategy, expected):
    assert strategy.samples
    found = shares(strategy)
    assert np.abs(found - expected).max() < 4 * np.sqrt(0.25 / DRAWS)
    assert not found[expected == 0].any()


def test_settings_that_do_not_sample():
    assert not DecodeStrategy().samples and not DecodeStrategy(top_k=1).samples and not DecodeStrategy(top_k=0).samples
    assert not DecodeStrategy(num_beams=2, temperature=2.0).samples
    assert shares(DecodeStrategy())[1] == 1.0


def test_each_text_has_its_own_random_stream():
    import paddle

    logits = paddle.zeros([3, 50])

    def steps(keys, keep=None):
        chooser, found = TokenChooser(DecodeStrategy(temperature=1.0, seed=4), keys), []
        for _ in range(6):
            found.append(chooser(logits[: len(keys)]).tolist())
            if keep:
                chooser.keep_rows(keep)
        return found

    together = np.array(steps([7, 8, 9]))
    assert len(set(map(tuple, together.T))) == 3
    assert np.array_equal(together[:, 1:], steps([8, 9]))
    assert np.array_equal(together[:, [2]], steps([9]))
    turned = np.array(steps([7, 8, 9], keep=[2, 0, 1]))
    assert turned[0].tolist() == together[0].tolist() and turned[1].tolist() == together[1][[2, 0, 1]].tolist()


def test_rounding_never_draws_an_impossible_token():
    """The probabilities of a large vocabulary do not add up to exactly one."""
    import paddle

    probabilities = np.full(100_000, 1e-5)
    probabilities[50_000:] = 0
    logits = paddle.to_tensor(np.where(probabilities > 0, 0.0, -np.inf).astype(np.float32)[None])

    class Largest:
        def random(self) -> float:
            return 1 - 2**-53

    chooser = TokenChooser(DecodeStrategy(temperature=1.0), [0])
    chooser._streams = [Largest()]
    assert chooser(logits).tolist()[0] < 50_000


def test_the_repetition_penalty_is_that_of_ctrl():
    import paddle

    seen = RepetitionPenalty([[0, 2, 2**30], [1]], 4, 2.0)
    logits = paddle.to_tensor([[1.0, -1.0, -3.0, 4.0], [1.0, -1.0, -3.0, 4.0]])
    assert seen(logits).tolist() == [[0.5, -1.0, -6.0, 4.0], [1.0, -2.0, -3.0, 4.0]]
    seen.add(paddle.to_tensor([3, 3]))
    seen.keep_rows(paddle.to_tensor([1]))
    assert seen(logits[1:]).tolist() == [[1.0, -2.0, -3.0, 2.0]]
