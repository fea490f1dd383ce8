"""Tokens that are drawn, and what comes before the draw."""

from __future__ import annotations

import numpy as np
import pytest

from paddle_llm.generation.sampling import Choice, Chooser, SeenTokens

PROBABILITIES = np.array([0.05, 0.4, 0.25, 0.2, 0.1])
DRAWS = 4000


def shares(choice: Choice, probabilities=PROBABILITIES) -> np.ndarray:
    """How often each token is drawn, over many texts."""
    import paddle

    logits = paddle.to_tensor(np.log(np.tile(probabilities, (DRAWS, 1))).astype(np.float32))
    tokens = Chooser(choice, range(DRAWS))(logits).numpy()
    return np.bincount(tokens, minlength=len(probabilities)) / DRAWS


def cut(probabilities: np.ndarray, kept: list[int]) -> np.ndarray:
    only = np.isin(np.arange(len(probabilities)), kept) * probabilities
    return only / only.sum()


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (Choice(temperature=1.0), PROBABILITIES),
        (Choice(temperature=0.5), PROBABILITIES**2 / (PROBABILITIES**2).sum()),
        (Choice(top_k=2), cut(PROBABILITIES, [1, 2])),
        (Choice(temperature=1.0, top_k=0), PROBABILITIES),
        (Choice(top_k=100), PROBABILITIES),
        (Choice(top_p=0.5), cut(PROBABILITIES, [1, 2])),  # 0.4 alone is not enough
        (Choice(top_p=1e-6), cut(PROBABILITIES, [1])),
        (Choice(top_p=1.0), PROBABILITIES),
        (Choice(top_k=3, top_p=0.7), cut(PROBABILITIES, [1, 2])),  # 0.65 / 0.85 of what top_k leaves
    ],
)
def test_shares_are_the_probabilities_that_were_asked_for(choice, expected):
    assert choice.samples
    found = shares(choice)
    assert np.abs(found - expected).max() < 4 * np.sqrt(0.25 / DRAWS)
    assert not found[expected == 0].any()


def test_what_does_not_sample():
    assert not Choice().samples and not Choice(top_k=1).samples and not Choice(top_k=0).samples
    assert not Choice(num_beams=2, temperature=2.0).samples
    assert shares(Choice())[1] == 1.0


def test_each_text_has_a_stream_of_its_own():
    import paddle

    logits = paddle.zeros([3, 50])

    def steps(keys, keep=None):
        chooser, found = Chooser(Choice(temperature=1.0, seed=4), keys), []
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


def test_rare_words_are_never_drawn_by_rounding():
    """A large vocabulary, whose probabilities do not add up to one exactly."""
    import paddle

    probabilities = np.full(100_000, 1e-5)
    probabilities[50_000:] = 0
    logits = paddle.to_tensor(np.where(probabilities > 0, 0.0, -np.inf).astype(np.float32)[None])

    class Largest:
        def random(self) -> float:
            return 1 - 2**-53

    chooser = Chooser(Choice(temperature=1.0), [0])
    chooser._streams = [Largest()]
    assert chooser(logits).tolist()[0] < 50_000


def test_repetition_is_penalised_as_ctrl_says():
    import paddle

    seen = SeenTokens([[0, 2, 2**30], [1]], 4, 2.0)
    logits = paddle.to_tensor([[1.0, -1.0, -3.0, 4.0], [1.0, -1.0, -3.0, 4.0]])
    assert seen(logits).tolist() == [[0.5, -1.0, -6.0, 4.0], [1.0, -2.0, -3.0, 4.0]]
    seen.add(paddle.to_tensor([3, 3]))
    seen.keep_rows(paddle.to_tensor([1]))
    assert seen(logits[1:]).tolist() == [[1.0, -2.0, -3.0, 2.0]]
