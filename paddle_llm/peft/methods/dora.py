"""DoRA (Liu et al. 2024): LoRA gives each output's direction, a trained vector m its magnitude.

    y = m / |W + s A B| * (x W + s x A B) + bias        |.| the norm of each column, [out]

The norm follows A and B and is a constant in the backward pass (section 4.3 of the paper; PEFT does the same). m starts as the norm
of W's columns. With dropout, LoRA's input is x after dropout, and so is the input of W in the part that DoRA adds:
y = x W + bias + (m / |.| - 1) drop(x) W + m / |.| s drop(x) A B, as PEFT 0.17 computes it.

Tensor parallelism: m is cut like W's outputs; where W's inputs are cut, the squares are summed over the ranks.
"""

from __future__ import annotations

from typing import Any

import paddle
import paddle.distributed as dist

from paddle_llm.core.errors import UserError
from paddle_llm.models.weights.shards import Shard
from paddle_llm.peft.attachment import Attachment, whole
from paddle_llm.peft.methods.parallel_product import Cut, summed_gradient


class Magnitude:
    """The magnitudes of one layer's outputs.

    Args:
        path: the layer's canonical name.
        base: this rank's part of the layer's weight.
        matrices: A and B, this rank's parts.
        scaling: factor of their product.
    """

    def __init__(
        self,
        attachment: Attachment,
        path: str,
        layer: Any,
        cut: Cut,
        base: Shard,
        matrices: tuple[Any, Any],
        scaling: float,
    ):
        self._layer, self._cut, self._matrices, self._scaling = layer, cut, matrices, scaling
        outputs = base.shape[1]
        shard = Shard((outputs,), 0, base.ranges) if base.is_split and base.axis == 1 else whole((outputs,))
        self.vector = attachment.add(layer, "lora_magnitude", path, shard, 0.0, layer.weight.dtype)
        with paddle.no_grad():
            self.vector.set_value(self._norm(layer.weight.astype("float32")).astype(self.vector.dtype))

    def scaled(self, output: Any, added: Any, dropped: Any = None) -> paddle.Tensor:
        """The layer's output with DoRA.

        Args:
            output: x W + bias.
            added: s x A B, of x after dropout.
            dropped: x after dropout, where there is any.
        """
        factor = self._factor().astype(output.dtype)
        if dropped is not None:
            if self._cut.axis.size > 1:
                raise UserError("DoRA with dropout is not offered with tensor parallelism. Set lora_dropout to 0.")
            return output + (factor - 1) * paddle.matmul(dropped, self._layer.weight) + factor * added
        bias = getattr(self._layer, "bias", None)
        if bias is None:
            return factor * (output + added)
        return factor * (output - bias + added) + bias

    def merged(self, changed: paddle.Tensor) -> paddle.Tensor:
        """m / |V| * V of V = W + s A B, fp32. Collective where the layer's inputs are cut."""
        return self.vector.astype("float32") / self._norm(changed) * changed

    def _factor(self) -> paddle.Tensor:
        axis, sums = self._cut.axis, self._cut.sequence if self._cut.kind == "row" else self._cut.kind == "shared"
        vector = summed_gradient(self.vector, axis, sums).astype("float32")
        with paddle.no_grad(), paddle.amp.auto_cast(enable=False):
            a, b = (matrix.detach().astype("float32") for matrix in self._matrices)
            norm = self._norm(self._layer.weight.detach().astype("float32") + paddle.matmul(a, b) * self._scaling)
        return vector / norm

    def _norm(self, matrix: paddle.Tensor) -> paddle.Tensor:
        """Norm of each column of the full matrix, for this rank's columns."""
        squares = paddle.square(matrix).sum(axis=0)
        if self._cut.kind == "row" and self._cut.axis.size > 1:
            dist.all_reduce(squares, group=self._cut.axis.group)
        return paddle.sqrt(squares)
