"""What one method changes in a network, in such a way that it can be taken back: tensors, hooks, replaced functions.

The network stays the PretrainedModel or PipelineLayer that it was, and its weights keep their names; a method's tensors
are parameters of the layers that they work on, under names of their own (`...q_proj.lora_A`). Why PaddleNLP's
`LoRAModel` and `PrefixModelForCausalLM` (3.0.0b4) are not used: they wrap the network, so that the trainer, generation
and the pipeline meet something else; their first values are drawn by each rank for itself, and replicas diverge; key-value
heads that tensor parallelism does not divide have no LoRA layer and no prefix; unmerging leaves rounding in the weights; and
what they save depends on the layout. The sums over tensor-parallel ranks here are part of the backward pass
(`parallel_product`), not hooks that a trainer has to know of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import paddle

from paddle_llm.config.layout import Layout
from paddle_llm.core.errors import UserError
from paddle_llm.families import Family
from paddle_llm.models.weights.initialization import draw_normal
from paddle_llm.models.weights.names import ADDED, EMBEDDINGS, canonical_parameters
from paddle_llm.models.weights.shards import Shard, shard_of, split_axis
from paddle_llm.parallel.mesh import Axis, current_mesh
from paddle_llm.peft.method import Method

_ATTRIBUTE = "_peft"  # on the network: its Adapters
_MISSING = object()


@dataclass(frozen=True)
class Added:
    """A tensor that a method adds: a parameter of `layer` under the name `attribute`."""

    name: str
    layer: Any
    attribute: str
    parameter: Any
    shard: Shard


class Attachment:
    """One method in one network. Built switched on.

    Attributes:
        added: the method's own tensors that this rank holds a part of.
        retrained: canonical name -> weight of the base that is trained as well.
        merges: layer -> the function that computes its weight with the method in it.
        axis: of tensor parallelism.
        penalty_share: AdaLoRA: what part of the penalty each backward pass adds; 0 where nobody divides the budget.
    """

    def __init__(self, model: Any, method: Method, layout: Layout, family: Family, seed: int):
        self.model, self.method, self.layout, self.family, self.seed = model, method, layout, family, seed
        self.axis: Axis = current_mesh(layout).tensor
        self.added: list[Added] = []
        self.retrained: dict[str, Any] = {}
        self.merges: dict[str, tuple[Any, Callable[[Any], Any]]] = {}
        self.base = dict(canonical_parameters(model, family.name))
        self.penalty_share = 0.0
        self.is_on = True
        self._names = {id(parameter): name for name, parameter in self.base.items()}
        self._after: list[tuple[Any, Callable[..., Any]]] = []
        self._handles: list[Any] = []
        self._replaced: list[tuple[Any, str, Any]] = []
        self._before: list[Any] = []
        self._away: dict[str, Any] = {}  # the other values of retrained weights

    # --- names and shards ------------------------------------------------------------------------------------------

    def path_of(self, layer: Any) -> str | None:
        """The canonical name of a layer that holds weights of the base, itself or in layers of its own."""
        for relative, parameter in layer.named_parameters():
            name = self._names.get(id(parameter))
            if name is not None and name.endswith(f".{relative}"):
                return name[: -len(relative) - 1]
        return None

    def layers(self) -> Iterator[tuple[str, Any]]:
        """(canonical name, layer) of everything in the network that holds weights."""
        for layer in self.model.sublayers():
            path = self.path_of(layer)
            if path is not None:
                yield path, layer

    def base_shard(self, name: str) -> Shard:
        """This rank's part of a weight of the base."""
        parameter = self.base[name]
        split = self.axis.size > 1 and bool(getattr(parameter, "is_distributed", False))
        return shard_of(
            self.family.name, name, parameter.shape, split, self.model.config, self.axis.size, self.axis.rank
        )

    def row_axis(self, path: str) -> bool:
        """Whether tensor parallelism cuts a matrix along its inputs."""
        return split_axis(self.family.name, f"{path}.weight", 2) == 0

    # --- what a method does ----------------------------------------------------------------------------------------

    def add(self, layer: Any, attribute: str, path: str, shard: Shard, deviation: float, dtype: Any = None) -> Any:
        """A new parameter of a layer: normal values of this deviation that depend on the seed and its name only.

        Args:
            path: the canonical name of the layer; "" for the network itself.
            deviation: 0 for zeros.
        """
        name = f"{path}.{attribute}".lstrip(".")
        shape = list(shard.shape)
        shape[shard.axis] = sum(stop - start for start, stop in shard.ranges)
        values = (
            draw_normal(self.seed, name, shard) * np.float32(deviation) if deviation else np.zeros(shape, "float32")
        )
        parameter = layer.create_parameter(shape, dtype=dtype or next(iter(self.base.values())).dtype)
        parameter.name = name  # optimizer states are kept by it: not one that counts what the process has made before
        with paddle.no_grad():
            parameter.set_value(paddle.to_tensor(values).astype(parameter.dtype))
        parameter.is_distributed = shard.is_split
        if shard.is_split:
            parameter.split_axis = shard.axis
        setattr(parameter, ADDED, True)
        layer.add_parameter(attribute, parameter)
        self.added.append(Added(name, layer, attribute, parameter, shard))
        return parameter

    def after(self, layer: Any, fn: Callable[..., Any]) -> None:
        """Let `fn(layer, inputs, output)` make what a layer gives."""
        self._after.append((layer, fn))
        self._handles.append(layer.register_forward_post_hook(fn))

    def replace(self, owner: Any, attribute: str, value: Any) -> None:
        """Set an attribute of one object, `forward` for instance."""
        self._replaced.append((owner, attribute, value))
        self._before.append(owner.__dict__.get(attribute, _MISSING))
        setattr(owner, attribute, value)

    def retrain(self, names: list[str]) -> None:
        """Train these weights of the base, too."""
        for name in names:
            self.retrained[name] = self.base[name]

    def mergeable(self, path: str, layer: Any, merged: Callable[[Any], Any]) -> None:
        """`merged(weight)` is the layer's weight with the method in it, both in fp32, this rank's part."""
        self.merges[path] = (layer, merged)

    # --- on and off ------------------------------------------------------------------------------------------------

    def switch_off(self) -> None:
        """The network computes as its base; its parameters are the base's alone."""
        if not self.is_on:
            return
        if self.retrained.keys() - self._away.keys():
            raise UserError(
                "this adapter has trained weights of the base, whose own values were not kept: load it over the base instead"
            )
        self.is_on = False
        for handle in self._handles:
            handle.remove()
        self._handles = []
        for (owner, attribute, _), before in reversed(list(zip(self._replaced, self._before, strict=True))):
            delattr(owner, attribute) if before is _MISSING else setattr(owner, attribute, before)
        self._before = []
        for tensor in self.added:
            del tensor.layer._parameters[tensor.attribute]
        self._exchange_retrained()
        self._forget_names()

    def switch_on(self) -> None:
        """The inverse of `switch_off`."""
        if self.is_on:
            return
        self.is_on = True
        for tensor in self.added:
            tensor.layer.add_parameter(tensor.attribute, tensor.parameter)
        for owner, attribute, value in self._replaced:
            self._before.append(owner.__dict__.get(attribute, _MISSING))
            setattr(owner, attribute, value)
        self._handles = [layer.register_forward_post_hook(fn) for layer, fn in self._after]
        self._exchange_retrained()
        self._forget_names()

    def keep_base(self) -> None:
        """Remember the base's values of what is retrained, before they change: for `switch_off`."""
        self._away = {name: parameter.detach().clone() for name, parameter in self.retrained.items()}

    @paddle.no_grad()
    def _exchange_retrained(self) -> None:
        for name, other in self._away.items():
            parameter = self.retrained[name]
            now = parameter.detach().clone()
            parameter.set_value(other)
            self._away[name] = now

    def _forget_names(self) -> None:
        """Pipelines of PaddleNLP look names up in a table that they make once."""
        if hasattr(self.model, "_single_to_pp_mapping"):
            self.model._single_to_pp_mapping = self.model._pp_to_single_mapping = None

    def settle(self) -> None:
        """After the method has done its part: exactly its tensors and what is retrained can be trained."""
        for parameter in self.base.values():
            parameter.stop_gradient = True
        for parameter in [*self.retrained.values(), *(tensor.parameter for tensor in self.added)]:
            parameter.stop_gradient = False
        self._forget_names()
        if self.layout.pipeline > 1:
            self._send_gradients_back()

    def _send_gradients_back(self) -> None:
        """Paddle's pipeline waits for the gradient of whatever a stage sends, also where nothing before it is trained."""
        for path, layer in self.layers():
            if f"{path}.weight" == EMBEDDINGS[self.family.name] and layer._parameters.get("weight") is not None:
                self.after(layer, _wanting_gradient)


@dataclass
class Adapters:
    """The attachments of a network by name, and which one is on.

    Attributes:
        merged: canonical name -> the weight before merging.
    """

    by_name: dict[str, Attachment]
    active: str | None
    merged: dict[str, Any]


def adapters_of(model: Any) -> Adapters | None:
    """What is attached to a network; None for nothing."""
    return getattr(model, _ATTRIBUTE, None)


def active_attachment(model: Any) -> Attachment | None:
    """The attachment that is switched on."""
    adapters = adapters_of(model)
    return adapters.by_name[adapters.active] if adapters is not None and adapters.active is not None else None


def remember(model: Any, name: str, attachment: Attachment) -> None:
    """Make an attachment the active one under a name."""
    adapters = adapters_of(model)
    if adapters is None:
        adapters = Adapters({}, None, {})
        setattr(model, _ATTRIBUTE, adapters)
    adapters.by_name[name] = attachment
    adapters.active = name


def _wanting_gradient(layer: Any, inputs: Any, output: Any) -> Any:
    if output.stop_gradient and paddle.is_grad_enabled():
        output.stop_gradient = False
        return output.clone()  # no leaf: with sequence parallelism PaddleNLP reshapes it in place
    return output


def whole(shape: list[int] | tuple[int, ...], axis: int = 0) -> Shard:
    """A tensor that every tensor-parallel rank holds."""
    return Shard(tuple(shape), axis, ((0, shape[axis]),))
