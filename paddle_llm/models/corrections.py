"""What is wrong in PaddleNLP 3.0.0b4's networks, mended in one place by replacing methods. Each with its reason and test.

- LLaMA, key-value heads that do not divide by the tensor-parallel degree: the heads are not matched with the queries of
  the rank (wrong shapes, or heads left out), and the gradients of the replicated projections are those of the rank alone.
"""

from __future__ import annotations

from typing import Any

import paddle
import paddle.nn.functional as F

_done: set[str] = set()


def correct_models() -> None:
    """Replace methods of PaddleNLP's classes. Once; a second call does nothing."""
    if "models" in _done:
        return
    _done.add("models")


def correct_network(model: Any, family: str) -> None:
    """Correct what depends on one network's layout."""
    if family == "llama":
        for layer in model.sublayers():
            if getattr(layer, "kv_indices", None) is not None:
                _share_key_value_heads(layer)


def _share_key_value_heads(attention: Any) -> None:
    """Give each query head of this rank its key-value head, and make the shared projections' gradients those of all."""
    config = attention.config
    group = config.num_attention_heads // config.num_key_value_heads
    first = config.tensor_parallel_rank * attention.num_heads
    attention.kv_indices = paddle.to_tensor([(first + head) // group for head in range(attention.num_heads)])
    attention.num_key_value_groups = 1
    for linear in (attention.k_proj, attention.v_proj):
        linear.forward = _SharedProjection(linear, config.sequence_parallel)


class _SharedProjection:
    """A projection whose weight every tensor-parallel rank holds and whose output each rank uses a part of.

    Forward it is the projection. Backward, the gradients of its weight and of its input are sums over the ranks.
    """

    def __init__(self, linear: Any, sequence_parallel: bool):
        self.linear = linear
        self.sequence_parallel = sequence_parallel

    def __call__(self, hidden: paddle.Tensor) -> paddle.Tensor:
        from paddle.distributed import fleet
        from paddle.distributed.collective import _c_identity

        group = fleet.get_hybrid_communicate_group().get_model_parallel_group()
        if self.sequence_parallel:
            from paddle.distributed.fleet.utils.sequence_parallel_utils import AllGatherOp

            hidden = AllGatherOp.apply(hidden)
        else:
            hidden = _c_identity(hidden, group=group)
        return F.linear(hidden, _c_identity(self.linear.weight, group=group))
