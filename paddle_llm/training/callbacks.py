"""Protocols of trainer callbacks that keep state or observe gradients, and the order in which callbacks are called."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import paddle

if TYPE_CHECKING:
    from paddlenlp.trainer import TrainerCallback


@runtime_checkable
class Stateful(Protocol):
    """A callback whose state is part of a checkpoint. All ranks have the same state and restore it, on any layout.

    A callback with values per weight follows `checkpoint.training_state.collect.TensorState` as well.

    Attributes:
        state_name: Name of the state in a checkpoint.
    """

    state_name: str

    def state(self) -> dict[str, Any]:
        """Return the state for a checkpoint: numbers, text, lists and dictionaries."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a state that `state` returned.

        Args:
            state: The state.
        """
        ...


@runtime_checkable
class GradientObserver(Protocol):
    """A callback that sees the reduced gradients of each step, before they are clipped and applied.

    It is not called for a step whose gradient norm is not finite.
    """

    def on_gradients(self, norm: paddle.Tensor) -> None:
        """Observe the gradients of the step.

        Args:
            norm: Global gradient norm before clipping, a scalar on the device.
        """
        ...


# Callbacks are called in the order of their attribute `priority`; with equal priority, in the order in which they were
# added. Reports come last, because they show the decisions of the other callbacks.
DEFAULT_PRIORITY = 0
REPORT_PRIORITY = 100


def priority_of(callback: TrainerCallback) -> int:
    """Return the priority of a callback; the default if it has none."""
    return int(getattr(callback, "priority", DEFAULT_PRIORITY))
