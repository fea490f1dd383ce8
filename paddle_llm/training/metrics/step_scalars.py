"""The scalars of an optimizer step that the host needs: losses, gradient norm, labels of the global batch, events of ranks.

Each copy from the device makes the host wait for everything that it has queued there. All scalars are copied together,
once per optimizer step, where the norm is checked before the update. The loss of the global batch and the events (a rank
was asked to stop, or has written its part of a checkpoint) are summed over all ranks in one operation.
"""

from __future__ import annotations

import math
from typing import Any

import paddle
import paddle.distributed as dist


class StepScalars:
    """Scalars of the current step.

    Attributes:
        loss: Mean of this rank's micro-batches, whose sums were all divided by the same number.
        mean_loss: Mean of `loss` over all ranks, equal on every rank: the loss of the global batch.
        grad_norm: Global gradient norm before clipping; None before the first step.
        labels: Labels of the global batch, averaged over the data ranks; None if the loss is not `CausalLMLoss`.
        stops: Whether a rank was asked to stop (`parallel/process/stop_request.py`), equal on every rank.
        save_ended: Whether a save in the background has ended on a rank (`training/trainers/saving.py`), equal on every rank.
        is_read: Whether the attributes are those of the current step.
    """

    def __init__(self) -> None:
        self.loss = self.mean_loss = math.nan
        self.grad_norm: float | None = None
        self.labels: float | None = None
        self.stops = self.save_ended = False
        self.is_read = False
        self._pending: dict[str, float | paddle.Tensor | None] | None = None

    def start(
        self,
        loss: paddle.Tensor,
        labels: float | paddle.Tensor | None,
        *,
        stop: bool = False,
        save_ended: bool = False,
    ) -> None:
        """Keep the scalars of a step on the device. Collective over all ranks.

        Args:
            loss: Loss of the step, a scalar.
            labels: Number of labels of the global batch, averaged over the data ranks; None if it is not counted.
            stop: Whether this rank was asked to stop.
            save_ended: Whether a save in the background has ended on this rank.
        """
        self._pending, self.is_read = {"loss": loss, "labels": labels}, False
        if dist.get_world_size() == 1:
            self._pending |= {"stop_requests": float(stop), "ended_saves": float(save_ended)}
            return
        events = paddle.to_tensor([float(stop), float(save_ended)], dtype="float64")
        sums = paddle.concat([loss.astype("float64").reshape([1]), events])
        dist.all_reduce(sums)
        self._pending |= {"loss_sum": sums[0], "stop_requests": sums[1], "ended_saves": sums[2]}

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
        given = {**self._pending, "grad_norm": norm}
        on_device = {name: value for name, value in given.items() if isinstance(value, paddle.Tensor)}
        values = paddle.concat([value.astype("float64").reshape([1]) for value in on_device.values()]).tolist()
        copied: dict[str, Any] = given | dict(zip(on_device, values, strict=True))
        self.loss, self.labels, self.stops = copied["loss"], copied["labels"], copied["stop_requests"] > 0
        self.save_ended = copied["ended_saves"] > 0
        self.mean_loss = copied["loss_sum"] / dist.get_world_size() if "loss_sum" in copied else self.loss
        self.grad_norm = copied["grad_norm"] if norm is not None else self.grad_norm
        self.is_read = True
        return math.nan if self.grad_norm is None else self.grad_norm
