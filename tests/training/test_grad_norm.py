"""The gradient norm of one process: correct in every type, and computed without a copy of float32 gradients."""

from __future__ import annotations

from unittest import mock

import numpy as np
import paddle
import pytest

from paddle_llm.training.metrics.grad_norm import RecordingClip


def _norm_of(gradients: list[paddle.Tensor]) -> float:
    clip, seen = RecordingClip(max_norm=0.0), []
    clip.observe = seen.append
    clip._dygraph_clip([(None, gradient) for gradient in gradients])
    return float(seen[0])


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_the_norm_is_that_of_all_gradients(dtype):
    # A kernel of the gradients' own type would overflow in fp16: the sum of squares is 360,000.
    gradients = [paddle.full(shape, 2.0).astype(dtype) for shape in ([300, 100], [60_000])]
    assert _norm_of(gradients) == pytest.approx(600.0, rel=1e-6)


def test_fp32_gradients_are_neither_copied_nor_squared_one_by_one():
    gradients = [paddle.to_tensor(np.random.default_rng(i).standard_normal((40, 30), np.float32)) for i in range(3)]
    expected = np.sqrt(sum(float((gradient**2).sum()) for gradient in gradients))
    refused = mock.Mock(side_effect=AssertionError("a copy of the gradient"))
    with mock.patch.multiple(paddle.Tensor, square=refused, astype=refused, cast=refused):
        norm = _norm_of(gradients)
    assert norm == pytest.approx(expected, rel=1e-6)
