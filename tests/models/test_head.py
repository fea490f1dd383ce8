"""Logits are computed only for positions with a loss: the same loss and gradients from fewer numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest

from paddle_llm.data.counted_batches import (
    LABELLED_POSITIONS,
    POSITION_LABELS,
    CountedBatches,
    count_instruction_tokens,
)
from tests.helpers.models.networks import WRITERS, batch, build

IGNORED = -100


def _picked(labels, multiple: int) -> dict:
    return CountedBatches(lambda samples: {"labels": labels}, count_instruction_tokens, multiple)([])


def _loss_and_gradients(model, inputs):
    loss, logits = model(**inputs, return_dict=False)[:2]
    loss.backward()
    gradients = {}
    for name, parameter in model.named_parameters():
        gradients[name] = None if parameter.grad is None else parameter.grad.numpy().copy()
        parameter.clear_gradient()
    return float(loss), gradients, logits


@pytest.mark.parametrize("family", WRITERS)
@pytest.mark.parametrize(("labelled", "multiple"), [(5, 1), (5, 8), (0, 1)])
def test_loss_and_gradients_are_those_of_all_positions(tmp_path, family, labelled, multiple):
    import paddle

    from paddle_llm.models.head import logits_at_positions

    model = build(WRITERS[family](tmp_path / family))
    model.eval()
    inputs = batch(family)
    labels = inputs["labels"].numpy()
    keep = np.zeros(labels.size, bool)
    # Different positions in the two rows, and the last one in the first row.
    keep[np.array([3, 9, 15, 16, 29])[:labelled] * labels.size // 32] = True
    inputs["labels"] = paddle.to_tensor(np.where(keep.reshape(labels.shape), labels, IGNORED))

    loss, gradients, _ = _loss_and_gradients(model, inputs)
    picked = _picked(inputs["labels"], multiple)
    positions, labels = (paddle.to_tensor(picked[name]) for name in (LABELLED_POSITIONS, POSITION_LABELS))
    with logits_at_positions(model, family, positions, inputs["labels"].shape):
        found, found_gradients, logits = _loss_and_gradients(model, {**inputs, "labels": labels})

    count = int((inputs["labels"] != IGNORED).sum())
    assert list(logits.shape[:2]) == [1, max(math.ceil(count / multiple), 1) * multiple]
    assert found == pytest.approx(loss, rel=1e-6, abs=1e-7)
    assert (loss != 0) == bool(labelled)
    for name, gradient in gradients.items():
        if gradient is None or found_gradients[name] is None:
            assert gradient is found_gradients[name], name
        else:
            np.testing.assert_allclose(found_gradients[name], gradient, rtol=2e-5, atol=2e-7, err_msg=name)


def test_all_logits_are_computed_if_almost_every_position_has_a_label():
    labels = np.ones((2, 16), np.int64)
    assert LABELLED_POSITIONS not in _picked(labels, 1)
    labels[:, :2] = IGNORED  # 28 of 32 positions
    assert len(_picked(labels, 1)[LABELLED_POSITIONS]) == 28
    assert LABELLED_POSITIONS not in _picked(labels, 32)
