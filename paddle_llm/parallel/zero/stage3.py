"""Sharding stage 3 on top of stage 2's `ShardedGradients`: each weight lives on its owner alone, and visits the others.

A unit is a transformer block (an element of the network's outermost LayerLists) or, outside of blocks, a layer that
holds parameters itself, or says that it computes with those of others (`borrowed_layers`). Just before a unit computes, in the forward pass and again in the backward pass, the owners of
its weights broadcast them to their sharding group, all of a unit's at once; afterwards everybody but the owner frees
them. Beyond its own share a rank holds one unit at a time, and sends each weight twice per micro batch instead of once
per step. With `prefetch` the weights of the next unit arrive while one computes, and a rank holds two units. (ZeRO stage 3, Rajbhandari et al. 2020, section 5.3: parameters partitioned, broadcast by their owner.)

Why not Paddle's GroupShardedStage3 (paddle 3.3.1): it runs on GPUs only; it cuts the weights into flat slices under new
names, for which AdamW's decay function, the optimizer state and the checkpoints of the other stages mean nothing; and
its clipping knows the norm of its own group only, so that it does not compose with tensor parallelism. Here the
parameters stay what they are, and gradients, moments, clipping and checkpoints are those of stages 1 and 2.

How it works in Paddle: `_clear_data` frees the memory of a parameter in place, and what the autograd has saved of it
refers to the same tensor; a parameter that is filled again before its gradient is computed is as if it had never left.
What uses a weight that is not there raises ("holds no memory").
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import paddle
import paddle.distributed as dist
from paddle import nn

from paddle_llm.core.errors import UserError
from paddle_llm.parallel.zero.stage2 import ShardedGradients

_ATTRIBUTE = "_sharded_weights"  # on the network: its ShardedWeights


@dataclass(frozen=True, eq=False)
class Unit:
    """A layer whose weights come and go together.

    Attributes:
        name: of the layer in the network.
        parameters: its weights; a weight of several units (tied embeddings) is there as long as one of them needs it.
    """

    name: str
    layer: nn.Layer
    parameters: tuple[Any, ...]


class ShardedWeights:
    """Keeps each weight on the sharding rank that owns it, and brings it to the others where they compute with it.

    The units of a network are taken to follow each other as a chain: when the backward pass of one begins, that of the
    others is over. From here on `state_dict()` of the network raises unless all weights are there: see `whole`.

    The network is built whole on every rank, and shrinks here.

    Args:
        model: the bare network (not fleet's wrapper), the same weights on every rank of the sharding group.
        optimizer: fleet's hybrid optimizer over a stage-1 sharding optimizer. A weight that it does not know stays on all ranks.
        gradients: of the same optimizer, with `broadcast_weights=False`.
        offload: an owner's weights lie in host memory (pinned, on a GPU) while nobody computes with them. During the
            update all that a rank owns are on the device.
        prefetch: broadcast the weights of the next unit while one computes. It pays where collectives run beside the
            computation (on a GPU), and costs the memory of a second unit.
    """

    def __init__(
        self,
        model: nn.Layer,
        optimizer: Any,
        gradients: ShardedGradients,
        *,
        offload: bool = False,
        prefetch: bool = False,
    ):
        self.group, self.rank = gradients.group, gradients.rank
        known = {p.name for p in optimizer._inner_opt._origin_parameter_list}
        self.units = list(_units(model, known))
        self._parameters = {p.name: p for unit in self.units for p in unit.parameters}
        self._owners = {name: gradients.owner(p) for name, p in self._parameters.items()}
        self._open: dict[Hashable, tuple[Any, ...]] = {}  # who needs which weights now
        self._users = dict.fromkeys(self._parameters, 0)
        self._arriving: dict[Hashable, list[Any]] = {}  # whose broadcasts have not been waited for
        self._order = _Order() if prefetch else None
        self._in_backward = False
        self._host: dict[str, Any] | None = {} if offload else None
        self._register_hooks(model)
        self._take_part_in_steps(optimizer._inner_opt)
        _send_round_what_is_here(optimizer)
        setattr(model, _ATTRIBUTE, self)
        self.free_unused()

    def owner(self, parameter: Any) -> int:
        """The rank in the sharding group that keeps this weight."""
        return self._owners[parameter.name]

    @contextmanager
    def whole(self, keep: bool = True) -> Iterator[None]:
        """All weights are there, to be saved or set. Collective over the sharding group.

        Memory: on a rank with `keep`, all weights (its tensor-parallel part of them) besides its own; they arrive one at
        a time, and on a GPU they lie in host memory, of the device they take one weight's. `keep=False` only sends.
        Not for computing: on a GPU every operation would copy them, and an update drops them.
        """
        users = {name: object() for name in self._parameters}
        for name, parameter in self._parameters.items():
            self._bring(users[name], [parameter])
            if not keep:
                self._drop(users[name])
            elif parameter.place.is_gpu_place() and self.owner(parameter) != self.rank:
                parameter.detach().cpu()._share_buffer_to(parameter)
        try:
            yield
        finally:
            for name, parameter in self._parameters.items():
                if users[name] in self._open:
                    self._store(parameter)  # it may have been set
                self._drop(users[name])

    @contextmanager
    def visiting(self, parameter: Any) -> Iterator[None]:
        """One weight is there. Collective over the sharding group; memory: this weight's."""
        user = object()
        self._bring(user, [parameter])
        try:
            yield
        finally:
            self._drop(user)

    @contextmanager
    def resident(self) -> Iterator[None]:
        """All weights are there, to compute with many times in a row. Collective over the sharding group.

        Memory: all weights (of this tensor-parallel part), on the device.
        """
        user = object()
        self._bring(user, self._parameters.values())
        try:
            yield
        finally:
            self._drop(user)

    def free_unused(self) -> None:
        """After weights were set from outside, on every rank: the owners keep them, the others let go. Not collective."""
        for parameter in self._parameters.values():
            if parameter._is_initialized() and not self._users[parameter.name]:
                self._store(parameter)
                self._free(parameter)

    # --- coming and going ----------------------------------------------------------------------------------------

    def _bring(self, user: Hashable, parameters: Any) -> None:
        """Let a user have its weights: broadcast those that are away, all at once."""
        self._start(user, parameters)
        for task in self._arriving.pop(user, ()):
            task.wait()

    @paddle.no_grad()
    def _start(self, user: Hashable, parameters: Any) -> None:
        """Begin the broadcasts of a user's weights, to be waited for."""
        if user in self._open:
            return
        self._open[user] = tuple(parameters)
        tasks = []
        for parameter in self._open[user]:
            if not self._users[parameter.name]:
                tasks.append(self._broadcast(parameter))
            self._users[parameter.name] += 1
        self._arriving[user] = tasks

    def _visit(self, unit: Unit) -> None:
        """A unit computes now: let it have its weights, and begin to bring those of the unit that follows."""
        self._bring(unit, unit.parameters)
        following = self._order.after(unit) if self._order else None
        if following is not None:
            self._start(following, following.parameters)

    def _broadcast(self, parameter: Any) -> Any:
        if self.owner(parameter) != self.rank:
            paddle.empty(parameter.shape, dtype=parameter.dtype)._share_buffer_to(parameter)
        elif self._host is not None:
            _on_device(self._host[parameter.name])._share_buffer_to(parameter)
        source = self.group.ranks[self.owner(parameter)]
        return dist.broadcast(parameter, src=source, group=self.group, sync_op=False)

    def _drop(self, user: Hashable) -> None:
        """A user needs its weights no more: free those that nobody else needs."""
        for task in self._arriving.pop(user, ()):
            task.wait()
        for parameter in self._open.pop(user, ()):
            self._users[parameter.name] -= 1
            if not self._users[parameter.name]:
                self._free(parameter)

    def _free(self, parameter: Any) -> None:
        if (self.owner(parameter) != self.rank or self._host is not None) and parameter._is_initialized():
            parameter._clear_data()

    def _store(self, parameter: Any) -> None:
        """With offload: the owner's copy in host memory becomes what it has on the device."""
        if self._host is None or self.owner(parameter) != self.rank:
            return
        if parameter.name in self._host:
            self._host[parameter.name].copy_(parameter.detach(), True)  # pinned memory is expensive to allocate
        else:
            self._host[parameter.name] = _on_host(parameter)

    # --- forward and backward ------------------------------------------------------------------------------------

    def _register_hooks(self, model: nn.Layer) -> None:
        # The network's own hooks come first: it may be a unit itself.
        model.register_forward_pre_hook(lambda layer, inputs: self._start_forward())
        for unit in self.units:
            unit.layer.register_forward_pre_hook(self._before_forward(unit))
            unit.layer.register_forward_post_hook(self._after_forward(unit))
        model.register_forward_post_hook(lambda layer, inputs, outputs: _on_gradient(outputs, self._start_backward))
        for layer in model.sublayers(include_self=True):
            layer.register_state_dict_hook(self._refuse_when_away(layer.parameters(include_sublayers=False)))

    def _start_forward(self) -> None:
        self._in_backward = False
        self._begin_phase("forward")
        self._drop_units()  # the first unit's, after a backward pass; anything, after an exception

    def _start_backward(self) -> None:
        if not self._in_backward:
            self._begin_phase("backward")
        self._in_backward = True

    def _begin_phase(self, name: str) -> None:
        if self._order:
            self._order.begin(name)

    def _before_forward(self, unit: Unit):
        def bring(layer, inputs) -> None:
            # Recomputation runs a unit's forward inside the backward pass; its backward follows.
            if self._in_backward:
                self._begin_backward(unit)
            else:
                self._visit(unit)

        return bring

    def _after_forward(self, unit: Unit):
        def drop(layer, inputs, outputs) -> None:
            _on_gradient(outputs, lambda: self._begin_backward(unit))
            if not self._in_backward:
                self._drop(unit)

        return drop

    def _begin_backward(self, unit: Unit) -> None:
        self._drop_units(but=(unit, *self._arriving))
        self._visit(unit)

    def _drop_units(self, but: Collection[Hashable] = ()) -> None:
        for user in list(self._open):
            if isinstance(user, Unit) and user not in but:
                self._drop(user)

    def _refuse_when_away(self, parameters: list[Any]):
        def refuse(state_dict) -> None:
            if any(not p._is_initialized() for p in parameters):
                raise UserError(
                    "the weights are sharded (stage 3): this rank does not hold all of what `state_dict()` would return. Read it "
                    "inside `with trainer.sharded_weights.whole():`, which all ranks enter."
                )

        return refuse

    # --- the optimizer's step ------------------------------------------------------------------------------------

    def _take_part_in_steps(self, sharding: Any) -> None:
        """Before the update nobody holds what is going to be stale; after it, the owners' weights are new."""
        reduce_gradients = sharding.reduce_gradients

        def finish_backward(*args, **kwargs) -> None:
            self._in_backward = False
            for user in list(self._open):
                self._drop(user)
            reduce_gradients(*args, **kwargs)
            if self._host is not None:
                self._to_update()

        sharding.reduce_gradients = finish_backward
        sharding._sharding_sync_parameters = self.free_unused

    def _to_update(self) -> None:
        """With offload: what this rank owns is on the device."""
        for name, copy in self._host.items():
            _on_device(copy)._share_buffer_to(self._parameters[name])


class _Order:
    """The order in which units compute in a forward and in a backward pass: what it was the last time is expected again."""

    def __init__(self) -> None:
        self._last: dict[str, list[Unit]] = {}
        self._phase, self._seen, self._expected = "", [], []

    def begin(self, phase: str) -> None:
        """A pass begins: "forward" or "backward"."""
        if self._seen:
            self._last[self._phase] = self._seen
        self._phase, self._seen, self._expected = phase, [], self._last.get(phase, [])

    def after(self, unit: Unit) -> Unit | None:
        """The unit that follows this one, which computes now; None if that is not known."""
        if not self._seen or self._seen[-1] is not unit:
            self._seen.append(unit)
        position = len(self._seen)
        if position < len(self._expected) and self._expected[position - 1] is unit:
            return self._expected[position]
        return None


def _send_round_what_is_here(optimizer: Any) -> None:
    """After an update fleet makes replicated weights (biases, BLOOM's layer norms) equal on all tensor ranks once more.

    Weights that are away cannot be sent; owners are at the same place in every tensor-parallel group. With offload all are
    away by then: tensor ranks have computed the same.
    """
    send_round = optimizer._sync_mp_params_and_moments

    def send(parameters, configs) -> None:
        send_round([p for p in parameters or () if p._is_initialized()], configs)

    optimizer._sync_mp_params_and_moments = send


def visiting(model: nn.Layer, parameter: Any) -> AbstractContextManager[None]:
    """A context in which one weight of a network is there, whether its weights are sharded or not (then: collective)."""
    weights = getattr(model, _ATTRIBUTE, None)
    return weights.visiting(parameter) if weights is not None else nullcontext()


def resident(model: nn.Layer) -> AbstractContextManager[None]:
    """`ShardedWeights.resident` of a network, whether its weights are sharded or not."""
    weights = getattr(model, _ATTRIBUTE, None)
    return weights.resident() if weights is not None else nullcontext()


def held_weight_elements(model: nn.Layer) -> int:
    """Elements of all weights that this rank holds at this moment."""
    return sum(p.size for p in model.parameters() if p._is_initialized())


def _units(layer: nn.Layer, known: set[str], name: str = "") -> Iterator[Unit]:
    """The units of a network over its weights of these names."""
    borrowed = [p for other in getattr(layer, "borrowed_layers", ()) for p in other.parameters()]
    own = _of_names([*layer.parameters(include_sublayers=False), *borrowed], known)
    if own:
        yield Unit(name, layer, own)
    for child_name, child in layer.named_children():
        path = f"{name}.{child_name}".lstrip(".")
        if isinstance(layer, nn.LayerList):
            yield Unit(path, child, _of_names(child.parameters(), known))
        else:
            yield from _units(child, known, path)


def _of_names(parameters: list[Any], known: set[str]) -> tuple[Any, ...]:
    return tuple(p for p in parameters if p.name in known)


def _on_gradient(outputs: Any, call: Callable[[], None]) -> None:
    """Call when the backward pass arrives at one of these tensors (a tensor, or nested in tuples and dicts)."""
    for tensor in paddle.utils.flatten(outputs):
        if isinstance(tensor, paddle.Tensor) and not tensor.stop_gradient:
            tensor.register_hook(lambda gradient: call())


def _on_host(parameter: Any) -> Any:
    return parameter.pin_memory() if parameter.place.is_gpu_place() else parameter.detach().clone()


def _on_device(copy: Any) -> Any:
    return copy.cuda(blocking=False) if copy.place.is_cuda_pinned_place() else copy.clone()
