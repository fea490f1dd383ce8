"""DoRA (Liu et al. 2024): LoRA changes the direction of each output, a trained vector m is its magnitude.

    y = m / |W + s A B| * (x W + s x A B) + bias        |.| is the norm of each column, [out]

The norm follows A and B and is a constant in the backward pass (section 4.3 of the paper; PEFT does the same). m
starts as the norm of W's columns. With dropout, LoRA's input is x after dropout, and so is the input of W in the part
that DoRA adds: y = x W + bias + (m / |.| - 1) drop(x) W + m / |.| s drop(x) A B, as PEFT 0.17 computes it.

Tensor parallelism: m is split like W's outputs. If W's inputs are split, the squares are summed over the ranks.
"""

from __future__ import annotations

import paddle
import paddle.distributed as dist

from paddle_llm.core.errors import UserError
from paddle_llm.models.weights.shards import Shard
from paddle_llm.peft.attachment import Attachment, unsplit_shard
from paddle_llm.peft.methods.parallel_product import LayerSplit, summed_gradient


class Magnitude:
    """The magnitudes of one layer's outputs.

    Args:
        attachment: The attachment of the method.
        path: Canonical name of the layer.
        layer: The layer.
        split: How the layer is split over ranks.
        matrices: This rank's parts of A and B.
        scaling: Scaling of their product.
    """

    def __init__(
        self,
        attachment: Attachment,
        path: str,
        layer: paddle.nn.Layer,
        split: LayerSplit,
        matrices: tuple[paddle.Tensor, paddle.Tensor],
        scaling: float,
    ) -> None:
        self._layer, self._split, self._matrices, self._scaling = layer, split, matrices, scaling
        base = attachment.base_shard(f"{path}.weight")
        outputs = base.shape[1]
        shard = Shard((outputs,), 0, base.ranges) if base.is_split and base.axis == 1 else unsplit_shard((outputs,))
        self.vector = attachment.add_parameter(layer, "lora_magnitude", path, shard, 0.0, layer.weight.dtype)
        with paddle.no_grad():
            self.vector.set_value(self._norm(layer.weight.astype("float32")).astype(self.vector.dtype))

    def scaled(
        self, output: paddle.Tensor, added: paddle.Tensor, dropped: paddle.Tensor | None = None
    ) -> paddle.Tensor:
        """Return the layer's output with DoRA.

        Args:
            output: x W + bias.
            added: s x A B, of x after dropout.
            dropped: x after dropout; None without dropout.
        """
        factor = self._factor().astype(output.dtype)
        if dropped is not None:
            if self._split.axis.size > 1:
                raise UserError("DoRA with dropout does not support tensor parallelism. Set lora_dropout to 0.")
            return output + (factor - 1) * paddle.matmul(dropped, self._layer.weight) + factor * added
        bias = getattr(self._layer, "bias", None)
        if bias is None:
            return factor * (output + added)
        return factor * (output - bias + added) + bias

    def merged(self, changed: paddle.Tensor) -> paddle.Tensor:
        """Return m / |V| * V with V = W + s A B, in fp32. Collective if the layer's inputs are split."""
        return self.vector.astype("float32") / self._norm(changed) * changed

    def _factor(self) -> paddle.Tensor:
        axis, sums = (
            self._split.axis,
            self._split.sequence if self._split.kind == "row" else self._split.kind == "shared",
        )
        vector = summed_gradient(self.vector, axis, sums).astype("float32")
        with paddle.no_grad(), paddle.amp.auto_cast(enable=False):
            a, b = (matrix.detach().astype("float32") for matrix in self._matrices)
            norm = self._norm(self._layer.weight.detach().astype("float32") + paddle.matmul(a, b) * self._scaling)
        return vector / norm

    def _norm(self, matrix: paddle.Tensor) -> paddle.Tensor:
        """Return the norm of each column of the full matrix, for this rank's columns."""
        squares = paddle.square(matrix).sum(axis=0)
        if self._split.kind == "row" and self._split.axis.size > 1:
            dist.all_reduce(squares, group=self._split.axis.group)
        return paddle.sqrt(squares)
