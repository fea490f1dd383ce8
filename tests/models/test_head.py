"""Logits of the positions that bear loss alone: the same loss and the same gradients, of fewer numbers."""

from __future__ import annotations

import numpy as np
import pytest

from tests.models.building import WRITERS, batch, build

IGNORED = -100


def _loss_and_gradients(model, inputs):
    loss, logits = model(**inputs, return_dict=False)[:2]
    loss.backward()
    gradients = {}
    for name, parameter in model.named_parameters():
        gradients[name] = None if parameter.grad is None else parameter.grad.numpy().copy()
        parameter.clear_gradient()
    return float(loss), gradients, logits


@pytest.mark.parametrize("family", WRITERS)
@pytest.mark.parametrize("labelled", [5, 0])
def test_loss_and_gradients_are_those_of_all_positions(tmp_path, family, labelled):
    import paddle

    from paddle_llm.models.head import labelled_positions_alone

    model = build(WRITERS[family](tmp_path / family))
    model.eval()
    inputs = batch(family)
    labels = inputs["labels"].numpy()
    keep = np.zeros(labels.size, bool)
    # Not the same ones in both rows, and the last position of the first.
    keep[np.array([3, 9, 15, 16, 29])[:labelled] * labels.size // 32] = True
    inputs["labels"] = paddle.to_tensor(np.where(keep.reshape(labels.shape), labels, IGNORED))

    loss, gradients, _ = _loss_and_gradients(model, inputs)
    with labelled_positions_alone(model, family, inputs["labels"]) as picked:
        found, found_gradients, logits = _loss_and_gradients(model, {**inputs, "labels": picked})

    assert list(logits.shape[:2]) == [1, max((inputs["labels"] != IGNORED).sum().item(), 1)]
    assert found == pytest.approx(loss, rel=1e-6, abs=1e-7)
    assert (loss != 0) == bool(labelled)
    for name, gradient in gradients.items():
        if gradient is None or found_gradients[name] is None:
            assert gradient is found_gradients[name], name
        else:
            np.testing.assert_allclose(found_gradients[name], gradient, rtol=2e-5, atol=2e-7, err_msg=name)


def test_labels_almost_everywhere_are_taken_as_they_are(tmp_path):
    from paddle_llm.models.head import labelled_positions_alone

    model = build(WRITERS["llama"](tmp_path / "llama"))
    inputs = batch("llama")
    with labelled_positions_alone(model, "llama", inputs["labels"]) as picked:
        assert picked is inputs["labels"]
        logits = model(**inputs)[1]
    assert logits.shape[:2] == inputs["labels"].shape
