"""Sharding stage 3 on top of stage 2: each weight is kept by its owner and gathered where it is used.

The unit of gathering is a transformer block, or a layer outside of blocks (`units.py`). Just before a unit computes, in
the forward pass and again in the backward pass, the owners of its weights broadcast them to their sharding group, all
of the unit's weights at once. Afterwards every rank but the owner frees them. Beyond its own share a rank holds one
unit at a time, and sends each weight twice per micro-batch instead of once per step. With `prefetch` the weights of the
next unit arrive while one computes, and a rank holds two units. (ZeRO stage 3, Rajbhandari et al. 2020, section 5.3:
parameters partitioned, broadcast by their owner.)

Paddle's GroupShardedStage3 (3.3.1) is not used. It runs on GPUs only. It cuts the weights into flat slices with new
names, for which AdamW's decay function, the optimizer state and the checkpoints of the other stages have no meaning.
Its clipping knows the norm of its own group only, so it cannot be combined with tensor parallelism. Here the parameters
are unchanged, and gradients, moments, clipping and checkpoints are those of stages 1 and 2.

In Paddle, `_clear_data` frees the memory of a parameter in place, and what autograd has saved of it refers to the same
tensor. So a parameter may be freed and filled again before its gradient is computed. An operator that reads a freed
weight raises ("holds no memory").
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import paddle
import paddle.distributed as dist
from paddle import Tensor, nn
from paddle.distributed.fleet.meta_optimizers.dygraph_optimizer import (
    DygraphShardingOptimizer,
    HybridParallelOptimizer,
)

from paddle_llm.core.errors import UserError
from paddle_llm.parallel.zero.stage2 import ShardedGradients
from paddle_llm.parallel.zero.units import Unit, UnitOrder, call_on_gradient, find_units

_ATTRIBUTE = "_sharded_weights"  # of the network: its ShardedWeights


class ShardedWeights:
    """Keeps each weight on the sharding rank that owns it, and gathers it where it is used.

    The units of a network are assumed to form a chain: when the backward pass of one begins, that of the one before it
    is over. After construction, `state_dict()` of the network raises unless all weights are gathered; see `whole`. The
    network is built whole on every rank and is reduced to its own share here.

    Attributes:
        group: Sharding group.
        rank: Rank of this process in the group.
        units: Units of the network.

    Args:
        model: Network without fleet's wrapper, with the same weights on every rank of the sharding group.
        optimizer: Fleet's hybrid optimizer over a stage-1 sharding optimizer. A weight that is not in it stays on all
            ranks.
        gradients: Sharded gradients of the same optimizer, with `broadcast_weights=False`.
        offload: Whether an owner's weights are kept in host memory (pinned, on a GPU) while they are not in use. During
            the update all weights that a rank owns are on the device.
        prefetch: Whether the weights of the next unit are broadcast while one computes. It helps if collectives run
            beside the computation (on a GPU), and needs the memory of a second unit.
    """

    def __init__(
        self,
        model: nn.Layer,
        optimizer: HybridParallelOptimizer,
        gradients: ShardedGradients,
        *,
        offload: bool = False,
        prefetch: bool = False,
    ):
        self.group, self.rank = gradients.group, gradients.rank
        known = {p.name for p in optimizer._inner_opt._origin_parameter_list}
        self.units = list(find_units(model, known))
        self._parameters = {p.name: p for unit in self.units for p in unit.parameters}
        self._owners = {name: gradients.owner(p) for name, p in self._parameters.items()}
        self._held: dict[Hashable, tuple[Tensor, ...]] = {}  # user -> weights that it uses now
        self._users = dict.fromkeys(self._parameters, 0)  # number of users of each weight
        self._arriving: dict[Hashable, list[Tensor]] = {}  # user -> broadcasts that are not finished
        self._order = UnitOrder() if prefetch else None
        self._in_backward = False
        self._host: dict[str, Tensor] | None = {} if offload else None
        self._register_hooks(model)
        self._wrap_optimizer_step(optimizer._inner_opt)
        _synchronize_held_weights_only(optimizer)
        setattr(model, _ATTRIBUTE, self)
        self.free_unused()

    def owner(self, parameter: Tensor) -> int:
        """Return the rank in the sharding group that keeps a weight."""
        return self._owners[parameter.name]

    @contextmanager
    def whole(self, keep: bool = True) -> Iterator[None]:
        """Gather all weights, to save or set them. Collective over the sharding group.

        Not for computing: on a GPU every operator would copy them, and an update frees them.

        Memory: on a rank with `keep`, all weights (of its tensor-parallel part) besides its own. They arrive one at a
        time and on a GPU are kept in host memory, so that the device needs the memory of one weight.

        Args:
            keep: Whether this rank keeps the weights; otherwise it only takes part in the broadcasts.
        """
        users = {name: object() for name in self._parameters}
        for name, parameter in self._parameters.items():
            self._gather(users[name], [parameter])
            if not keep:
                self._release(users[name])
            elif parameter.place.is_gpu_place() and self.owner(parameter) != self.rank:
                parameter.detach().cpu()._share_buffer_to(parameter)
        try:
            yield
        finally:
            for name, parameter in self._parameters.items():
                if users[name] in self._held:
                    self._store(parameter)  # it may have been set
                self._release(users[name])

    @contextmanager
    def gathered(self, parameter: Tensor) -> Iterator[None]:
        """Gather one weight. Collective over the sharding group; memory: this weight's."""
        user = object()
        self._gather(user, [parameter])
        try:
            yield
        finally:
            self._release(user)

    @contextmanager
    def materialized(self) -> Iterator[None]:
        """Gather all weights, to compute with them many times. Collective over the sharding group.

        Memory: all weights (of this tensor-parallel part), on the device.
        """
        user = object()
        self._gather(user, self._parameters.values())
        try:
            yield
        finally:
            self._release(user)

    @contextmanager
    def owned(self, parameter: Tensor) -> Iterator[None]:
        """Hold a weight that this rank owns on the device, to read or set it. Not collective."""
        absent = self._host is not None and not self._users[parameter.name]
        if self._host is not None and absent:
            _on_device(self._host[parameter.name])._share_buffer_to(parameter)
        try:
            yield
        finally:
            self._store(parameter)
            if absent:
                self._free(parameter)

    def shards(self, parameter: Tensor) -> bool:
        """Return whether a weight is kept by its owner only."""
        return parameter.name in self._parameters

    def free_unused(self) -> None:
        """Free the weights that this rank does not own, after they were set on every rank. Not collective."""
        for parameter in self._parameters.values():
            if parameter._is_initialized() and not self._users[parameter.name]:
                self._store(parameter)
                self._free(parameter)

    # --- gathering and freeing -----------------------------------------------------------------------------------

    def _gather(self, user: Hashable, parameters: Iterable[Tensor]) -> None:
        """Gather the weights of a user; those that are not held are broadcast at the same time."""
        self._start_gathering(user, parameters)
        for task in self._arriving.pop(user, ()):
            task.wait()

    @paddle.no_grad()
    def _start_gathering(self, user: Hashable, parameters: Iterable[Tensor]) -> None:
        """Start the broadcasts of a user's weights."""
        if user in self._held:
            return
        self._held[user] = tuple(parameters)
        tasks = []
        for parameter in self._held[user]:
            if not self._users[parameter.name]:
                tasks.append(self._broadcast(parameter))
            self._users[parameter.name] += 1
        self._arriving[user] = tasks

    def _gather_unit(self, unit: Unit) -> None:
        """Gather the weights of a unit that computes now, and start to gather those of the next one."""
        self._gather(unit, unit.parameters)
        following = self._order.after(unit) if self._order else None
        if following is not None:
            self._start_gathering(following, following.parameters)

    def _broadcast(self, parameter: Tensor) -> Any:
        if self.owner(parameter) != self.rank:
            paddle.empty(parameter.shape, dtype=parameter.dtype)._share_buffer_to(parameter)
        elif self._host is not None:
            _on_device(self._host[parameter.name])._share_buffer_to(parameter)
        source = self.group.ranks[self.owner(parameter)]
        return dist.broadcast(parameter, src=source, group=self.group, sync_op=False)

    def _release(self, user: Hashable) -> None:
        """End the use of weights by a user, and free those that no other user needs."""
        for task in self._arriving.pop(user, ()):
            task.wait()
        for parameter in self._held.pop(user, ()):
            self._users[parameter.name] -= 1
            if not self._users[parameter.name]:
                self._free(parameter)

    def _free(self, parameter: Tensor) -> None:
        if (self.owner(parameter) != self.rank or self._host is not None) and parameter._is_initialized():
            parameter._clear_data()

    def _store(self, parameter: Tensor) -> None:
        """Copy an owned weight from the device to host memory, with `offload`."""
        if self._host is None or self.owner(parameter) != self.rank:
            return
        if parameter.name in self._host:
            self._host[parameter.name].copy_(parameter.detach(), True)  # pinned memory is expensive to allocate
        else:
            self._host[parameter.name] = _on_host(parameter)

    # --- forward and backward ------------------------------------------------------------------------------------

    def _register_hooks(self, model: nn.Layer) -> None:
        # The network's own hook comes first: the network may be a unit itself.
        model.register_forward_pre_hook(lambda layer, inputs: self._start_forward())
        for unit in self.units:
            unit.layer.register_forward_pre_hook(self._before_forward(unit))
            unit.layer.register_forward_post_hook(self._after_forward(unit))
        model.register_forward_post_hook(lambda layer, inputs, outputs: call_on_gradient(outputs, self._start_backward))
        for layer in model.sublayers(include_self=True):
            layer.register_state_dict_hook(self._require_weights(layer.parameters(include_sublayers=False)))

    def _start_forward(self) -> None:
        self._in_backward = False
        self._begin_phase("forward")
        self._release_units()  # the first unit of a backward pass, or all units after an exception

    def _start_backward(self) -> None:
        if not self._in_backward:
            self._begin_phase("backward")
        self._in_backward = True

    def _begin_phase(self, name: str) -> None:
        if self._order:
            self._order.begin(name)

    def _before_forward(self, unit: Unit) -> Callable[..., None]:
        def gather(layer: nn.Layer, inputs: Any) -> None:
            # Recomputation runs a unit's forward pass inside the backward pass; its backward pass follows.
            if self._in_backward:
                self._begin_backward(unit)
            else:
                self._gather_unit(unit)

        return gather

    def _after_forward(self, unit: Unit) -> Callable[..., None]:
        def release(layer: nn.Layer, inputs: Any, outputs: Any) -> None:
            call_on_gradient(outputs, lambda: self._begin_backward(unit))
            if not self._in_backward:
                self._release(unit)

        return release

    def _begin_backward(self, unit: Unit) -> None:
        self._release_units(but=(unit, *self._arriving))
        self._gather_unit(unit)

    def _release_units(self, but: Collection[Hashable] = ()) -> None:
        for user in list(self._held):
            if isinstance(user, Unit) and user not in but:
                self._release(user)

    def _require_weights(self, parameters: list[Tensor]) -> Callable[[dict[str, Tensor]], None]:
        def check(state_dict: dict[str, Tensor]) -> None:
            if any(not p._is_initialized() for p in parameters):
                raise UserError(
                    "state_dict() is incomplete: the weights are sharded (stage 3), and this rank has a part of them. Call it "
                    "inside `with trainer.sharded_weights.whole():` on all ranks."
                )

        return check

    # --- the optimizer's step ------------------------------------------------------------------------------------

    def _wrap_optimizer_step(self, sharding: DygraphShardingOptimizer) -> None:
        """Free gathered weights before the update, which makes them outdated; keep the owners' weights after it."""
        reduce_gradients = sharding.reduce_gradients

        def finish_backward(*args: Any, **kwargs: Any) -> None:
            self._in_backward = False
            for user in list(self._held):
                self._release(user)
            reduce_gradients(*args, **kwargs)
            self._load_owned()

        sharding.reduce_gradients = finish_backward
        sharding._sharding_sync_parameters = self.free_unused

    def _load_owned(self) -> None:
        """Copy all owned weights to the device, with `offload`."""
        for name, copy in (self._host or {}).items():
            _on_device(copy)._share_buffer_to(self._parameters[name])


def _synchronize_held_weights_only(optimizer: HybridParallelOptimizer) -> None:
    """Limit fleet's synchronization of replicated weights (biases, BLOOM's layer norms) to weights that are held.

    After an update fleet makes them equal on all tensor ranks. A freed weight cannot be sent, and its owners have the
    same position in every tensor-parallel group. With offload all weights are freed by then; tensor ranks have computed
    the same.
    """
    synchronize = optimizer._sync_mp_params_and_moments

    def synchronize_held(parameters: list[Tensor] | None, configs: Any) -> None:
        synchronize([p for p in parameters or () if p._is_initialized()], configs)

    optimizer._sync_mp_params_and_moments = synchronize_held


def gathered_weight(model: nn.Layer, parameter: Tensor) -> AbstractContextManager[None]:
    """Return a context in which this rank holds a weight; in stage 3 collective over the sharding group."""
    weights = getattr(model, _ATTRIBUTE, None)
    return weights.gathered(parameter) if weights is not None else nullcontext()


def is_sharded(model: nn.Layer, parameter: Tensor) -> bool:
    """Return whether a weight is kept by its owner only (stage 3)."""
    weights = getattr(model, _ATTRIBUTE, None)
    return weights is not None and weights.shards(parameter)


def owned_weight(model: nn.Layer, parameter: Tensor) -> AbstractContextManager[None]:
    """Return a context in which an owner holds a weight on the device. Not collective."""
    return getattr(model, _ATTRIBUTE).owned(parameter) if is_sharded(model, parameter) else nullcontext()


def materialized(model: nn.Layer) -> AbstractContextManager[None]:
    """Return a context in which this rank holds all weights of a network; see `ShardedWeights.materialized`."""
    weights = getattr(model, _ATTRIBUTE, None)
    return weights.materialized() if weights is not None else nullcontext()


def held_weight_elements(model: nn.Layer) -> int:
    """Return the number of elements of all weights that this rank holds now."""
    return sum(p.size for p in model.parameters() if p._is_initialized())


def _on_host(parameter: Tensor) -> Tensor:
    return parameter.pin_memory() if parameter.place.is_gpu_place() else parameter.detach().clone()


def _on_device(copy: Tensor) -> Tensor:
    return copy.cuda(blocking=False) if copy.place.is_cuda_pinned_place() else copy.clone()
