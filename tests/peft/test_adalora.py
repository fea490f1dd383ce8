"""AdaLoRA: the gradient of the penalty, the schedule of the budget, and the removed triplets."""

from __future__ import annotations

import numpy as np
import pytest

from paddle_llm.peft.method import Method
from tests.helpers.models.adapters import attached, network, set_trained
from tests.helpers.models.networks import batch

METHOD = Method("adalora", rank=2, initial_rank=4, warmup_ratio=0.2, final_ratio=0.3, budget_interval=1)


def test_the_budget_decreases_cubically():
    from paddle_llm.peft.methods.adalora import budget_at

    left = [budget_at(step, 20, METHOD, matrices=10) for step in range(1, 21)]
    assert left[:3] == [40, 40, 40] and left[13:] == [20] * 7
    assert left[3:13] == [round(20 + 20 * (1 - n / 10) ** 3) for n in range(10)]


def test_the_penalty_is_added_to_the_gradients_once_per_step(tmp_path):
    """P and Q get gamma times the gradient of |P^T P - 1|^2 + |Q Q^T - 1|^2 over all backward passes of a step."""
    import paddle

    from paddle_llm.peft.attachment import active_attachment

    model = attached(network(tmp_path), METHOD)
    set_trained(model)
    model.train()
    layer = model.llama.layers[1].mlp.up_proj
    gradients = []
    for share in (0.0, 0.5):
        active_attachment(model).penalty_share = share
        model.clear_gradients()
        for _ in range(2):  # two micro-batches
            loss = model(**batch("llama"))
            (loss[0] if isinstance(loss, tuple) else loss).backward()
        gradients.append([parameter.grad.numpy() for parameter in (layer.lora_A, layer.lora_B, layer.lora_E)])
    a, b = (parameter.detach().clone() for parameter in (layer.lora_A, layer.lora_B))
    a.stop_gradient = b.stop_gradient = False
    one = paddle.eye(4)
    (METHOD.orthogonal_weight * (((a.t() @ a - one) ** 2).sum() + ((b @ b.t() - one) ** 2).sum())).backward()
    for without, with_it, expected in zip(*gradients, [a.grad.numpy(), b.grad.numpy(), 0.0], strict=True):
        assert np.allclose(with_it - without, expected, atol=1e-6)


def test_the_least_important_triplets_are_removed(tmp_path):
    """Importance is what eq. 8 to 11 of the paper say, here of one step: 0.15^2 * 0.85 |w g|^2."""
    import paddle

    from paddle_llm.peft.attachment import active_attachment
    from paddle_llm.peft.methods.adalora import BETA, Budget

    model = attached(network(tmp_path), METHOD)
    set_trained(model)
    attachment = active_attachment(model)
    numbers = np.random.default_rng(3)
    gradients = {t.name: numbers.standard_normal(t.parameter.shape).astype("float32") for t in attachment.added}
    budget = Budget(attachment, steps=10)
    budget.observe(lambda parameter: paddle.to_tensor(gradients[parameter.name]))

    def importance(tensor) -> np.ndarray:
        return (1 - BETA) ** 2 * BETA * (tensor.parameter.numpy() * gradients[tensor.name]) ** 2

    scores = []
    for a, e, b in zip(attachment.added[0::3], attachment.added[1::3], attachment.added[2::3], strict=True):
        scores.append(importance(e) + importance(a).mean(0) + importance(b).mean(1))
    budget.allocate(step=7)  # the final phase begins: two of four remain on average
    kept = np.array([t.parameter.numpy() != 0 for t in attachment.added[1::3]])
    count = len(scores) * 2
    assert kept.sum() == count
    threshold = np.sort(np.array(scores), axis=None)[-count]
    assert np.array_equal(kept, np.array(scores) >= threshold)
    set_trained(model, seed=1)
    budget.allocate(step=8)  # removed triplets stay removed
    assert np.array_equal(kept, [t.parameter.numpy() != 0 for t in attachment.added[1::3]])
    again = Budget(attachment, steps=10)
    saved = {(name, parameter.name): values for name, parameter, values in budget.tensors()}
    again.restore_tensors(lambda name, parameter: saved.get((name, parameter.name)), owns=lambda parameter: True)
    assert np.array_equal(again.kept, kept)
    found = {(name, parameter.name): values for name, parameter, values in again.tensors()}
    assert found.keys() == saved.keys() and all(np.array_equal(found[key], saved[key]) for key in saved)


def test_there_is_no_penalty_without_a_trainer(tmp_path):
    from paddle_llm.peft.attachment import active_attachment

    assert active_attachment(attached(network(tmp_path), METHOD)).penalty_share == pytest.approx(0.0)
