"""Values and gradients of the tensor-parallel operators equal those of one process."""

from __future__ import annotations

import numpy as np
import pytest

from paddle_llm.rehearse.ranks import run_ranks

VOCABULARY, ROWS, IGNORED = 10, 6, -100
LABELS = np.array([0, 4, 5, 9, IGNORED, 3])


def operators(dtype: str) -> dict[str, np.ndarray]:
    import paddle
    from paddle.distributed import fleet
    from paddle.distributed.fleet.layers.mpu import mp_ops

    from paddle_llm.parallel.gloo.backend import install_gloo_backend

    install_gloo_backend()
    strategy = fleet.DistributedStrategy()
    strategy.hybrid_configs = {"dp_degree": 1, "mp_degree": 2, "pp_degree": 1}
    fleet.init(is_collective=True, strategy=strategy)
    group = fleet.get_hybrid_communicate_group().get_model_parallel_group()
    rank = group.rank
    full = paddle.to_tensor(_logits()).astype(dtype)

    def leaf(tensor):
        tensor = tensor.clone().detach()
        tensor.stop_gradient = False
        return tensor

    def as_array(tensor):
        return tensor.astype("float64").numpy()

    found = {}
    part = leaf(full[:, rank * 5 : rank * 5 + 5])
    loss = mp_ops._c_softmax_with_cross_entropy(part, paddle.to_tensor(LABELS), group=group, ignore_index=IGNORED)
    (loss.flatten() * paddle.arange(1, ROWS + 1).astype(dtype)).sum().backward()
    found["loss"], found["loss gradient"] = as_array(loss.flatten()), as_array(part.grad)

    weights = (paddle.arange(VOCABULARY) + 1).astype(dtype)
    x = leaf(full)
    split = mp_ops._c_split(x, group=group)
    (split * weights[rank * 5 : rank * 5 + 5]).sum().backward()
    found["split"], found["split gradient"] = as_array(split), as_array(x.grad)

    x = leaf(full[:, rank * 5 : rank * 5 + 5])
    whole = mp_ops._c_concat(x, group=group)
    (whole * weights).sum().backward()
    found["concat"], found["concat gradient"] = as_array(whole), as_array(x.grad)

    x = leaf(full)
    same = mp_ops._c_identity(x, group=group)
    (same * (rank + 1)).sum().backward()
    found["identity"], found["identity gradient"] = as_array(same), as_array(x.grad)

    x = leaf(full)
    total = mp_ops._mp_allreduce(x * (rank + 1), group=group)
    (total * weights).sum().backward()
    found["sum"], found["sum gradient"] = as_array(total), as_array(x.grad)
    return found


def _logits() -> np.ndarray:
    # Large enough for a softmax without the maximum taken off to overflow in float32.
    return np.random.default_rng(0).normal(0, 60, (ROWS, VOCABULARY)).round(1)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("float64", 1e-12)])
def test_tensor_parallel_operators_equal_one_process(dtype, tolerance):
    logits = _logits().astype(dtype).astype("float64")
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    softmax = shifted / shifted.sum(-1, keepdims=True)
    counted = (LABELS != IGNORED).astype(float)
    onehot = np.eye(VOCABULARY)[np.where(LABELS == IGNORED, 0, LABELS)]
    loss = -np.log((softmax * onehot).sum(-1)) * counted
    gradient = (softmax - onehot) * (counted * np.arange(1, ROWS + 1))[:, None]
    weights = np.broadcast_to(np.arange(1, VOCABULARY + 1.0), logits.shape)
    for rank, found in enumerate(run_ranks(operators, 2, dtype)):
        own = slice(rank * 5, rank * 5 + 5)
        expected = {
            "loss": loss,
            "loss gradient": gradient[:, own],
            "split": logits[:, own],
            "split gradient": weights,
            "concat": logits,
            "concat gradient": weights[:, own],
            "identity": logits,
            "identity gradient": np.full_like(logits, 3.0),
            "sum": logits * 3,
            "sum gradient": weights * (rank + 1),
        }
        assert set(found) == set(expected)
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, rtol=tolerance * 10, atol=tolerance, err_msg=name)
