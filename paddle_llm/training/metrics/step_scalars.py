"""The scalars of an optimizer step that the host needs: loss, gradient norm, and labels of the global batch.

Each copy from the device makes the host wait for everything that it has queued there. All three scalars are copied
together, once per optimizer step, where the norm is checked before the update.
"""

from __future__ import annotations

import math

import paddle


class StepScalars:
    """Scalars of the current step.

    Attributes:
        loss: Mean of this rank's micro-batches, whose sums were all divided by the same number.
        grad_norm: Global gradient norm before clipping; None before the first step.
        labels: Labels of the global batch, averaged over the data ranks; None if the loss is not `CausalLMLoss`.
        is_read: Whether the attributes are those of the current step.
    """

    def __init__(self) -> None:
        self.loss = math.nan
        self.grad_norm: float | None = None
        self.labels: float | None = None
        self.is_read = False
        self._pending: tuple[paddle.Tensor, float | paddle.Tensor | None] | None = None

    def start(self, loss: paddle.Tensor, labels: float | paddle.Tensor | None) -> None:
        """Keep the loss and the number of labels of a step on the device.

        Args:
            loss: Loss of the step, a scalar.
            labels: Number of labels of the global batch, averaged over the data ranks; None if it is not counted.
        """
        self._pending, self.is_read = (loss, labels), False

    def read(self, norm: paddle.Tensor | None) -> float:
        """Copy the step's scalars to the host.

        Args:
            norm: Global gradient norm of the step; None if no gradient took part in a norm.

        Returns:
            The gradient norm; NaN if none has been computed yet.

        Raises:
            RuntimeError: If no step has been started.
        """
        if self._pending is None:
            raise RuntimeError("read() was called before start(): no loss to read")
        loss, labels = self._pending
        given = {"loss": loss, "grad_norm": norm, "labels": labels}
        on_device = {name: value for name, value in given.items() if isinstance(value, paddle.Tensor)}
        values = paddle.concat([value.astype("float64").reshape([1]) for value in on_device.values()]).tolist()
        copied = given | dict(zip(on_device, values, strict=True))
        self.loss, self.labels = copied["loss"], copied["labels"]
        self.grad_norm = copied["grad_norm"] if norm is not None else self.grad_norm
        self.is_read = True
        return math.nan if self.grad_norm is None else self.grad_norm
