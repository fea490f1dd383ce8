"""The units of a network in sharding stage 3: layers whose weights are gathered and freed together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import paddle
from paddle import Tensor, nn


@dataclass(frozen=True, eq=False)
class Unit:
    """A layer whose weights are gathered and freed together.

    Attributes:
        name: Name of the layer in the network.
        layer: The layer.
        parameters: Its weights. A weight of several units (tied embeddings) is held as long as one of them uses it.
    """

    name: str
    layer: nn.Layer
    parameters: tuple[Tensor, ...]


def find_units(layer: nn.Layer, known: set[str], name: str = "") -> Iterator[Unit]:
    """Return the units of a network.

    A unit is an element of the network's outermost LayerLists (a transformer block) or, outside of them, a layer that
    has parameters itself or reads those of other layers, which it names in its attribute `uses_weights_of`.

    Args:
        layer: Network, or a part of it.
        known: Names of the parameters that units consist of.
        name: Name of `layer` in the network.
    """
    others = [p for other in getattr(layer, "uses_weights_of", ()) for p in other.parameters()]
    own = _of_names([*layer.parameters(include_sublayers=False), *others], known)
    if own:
        yield Unit(name, layer, own)
    for child_name, child in layer.named_children():
        path = f"{name}.{child_name}".lstrip(".")
        if isinstance(layer, nn.LayerList):
            yield Unit(path, child, _of_names(child.parameters(), known))
        else:
            yield from find_units(child, known, path)


def _of_names(parameters: list[Tensor], known: set[str]) -> tuple[Tensor, ...]:
    return tuple(p for p in parameters if p.name in known)


class UnitOrder:
    """Predicts the unit that computes next: the one that followed in the last pass of the same kind."""

    def __init__(self) -> None:
        self._last: dict[str, list[Unit]] = {}
        self._phase = ""
        self._seen: list[Unit] = []
        self._expected: list[Unit] = []

    def begin(self, phase: str) -> None:
        """Begin a pass.

        Args:
            phase: "forward" or "backward".
        """
        if self._seen:
            self._last[self._phase] = self._seen
        self._phase, self._seen, self._expected = phase, [], self._last.get(phase, [])

    def after(self, unit: Unit) -> Unit | None:
        """Return the unit that follows a unit that computes now; None if it is not known."""
        if not self._seen or self._seen[-1] is not unit:
            self._seen.append(unit)
        position = len(self._seen)
        if position < len(self._expected) and self._expected[position - 1] is unit:
            return self._expected[position]
        return None


def call_on_gradient(outputs: Any, call: Callable[[], None]) -> None:
    """Call a function when the backward pass reaches one of these tensors.

    Args:
        outputs: Tensor, or tensors in nested tuples and dicts.
        call: Function to call.
    """
    for tensor in paddle.utils.flatten(outputs):
        if isinstance(tensor, Tensor) and not tensor.stop_gradient:
            tensor.register_hook(lambda gradient: call())
