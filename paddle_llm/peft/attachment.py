"""The changes that one method makes to a network, all of them reversible: tensors, hooks, replaced functions.

The network stays a PretrainedModel or PipelineLayer, and its weights keep their names. A method's tensors are
parameters of the layers that they work on, with separate names (`...q_proj.lora_A`).

PaddleNLP's `LoRAModel` and `PrefixModelForCausalLM` (3.0.0b4) are not used for these reasons: they wrap the network,
so that the trainer, generation and the pipeline see another object; each rank draws its own initial values, so
replicas diverge; key-value heads that tensor parallelism does not divide get no LoRA and no prefix; unmerging leaves
rounding errors in the weights; and what they save depends on the layout. Here the sums over tensor-parallel ranks are
part of the backward pass (`parallel_product`), not hooks that a trainer must know of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from paddle.nn.layer.layers import HookRemoveHelper

    from paddle_llm.models.protocols import LanguageModel

_ATTRIBUTE = "_peft"  # attribute of the network that holds its Adapters
_MISSING = object()

# Arguments: the layer, the tuple of its inputs, its output. Returns the output to use instead.
OutputHook = Callable[[paddle.nn.Layer, tuple[Any, ...], paddle.Tensor], paddle.Tensor]
MergedWeight = Callable[[paddle.Tensor], paddle.Tensor]


@dataclass(frozen=True)
class Added:
    """A tensor that a method adds.

    Attributes:
        name: Canonical name.
        layer: Layer that holds the parameter.
        attribute: Name of the parameter in that layer.
        parameter: The parameter, this rank's part.
        shard: Which part of the full tensor that is.
    """

    name: str
    layer: paddle.nn.Layer
    attribute: str
    parameter: paddle.Tensor
    shard: Shard


class Attachment:
    """One method attached to one network. It is switched on when created.

    Args:
        model: A PaddleNLP network.
        method: The method and its settings.
        layout: Layout of the ranks.
        family: Model family.
        seed: Seed of the initial values.

    Attributes:
        added: Tensors of the method that this rank holds a part of.
        retrained: Canonical name -> weight of the base that is trained as well.
        merges: Path of a layer -> (layer, function from its weight to the weight with the method merged in).
        axis: Mesh axis of tensor parallelism.
        base: Canonical name -> weight of the base.
        penalty_share: For AdaLoRA, the share of the penalty that each backward pass adds; 0 if no budget is divided.
        is_on: Whether the network computes with the method.
    """

    def __init__(self, model: LanguageModel, method: Method, layout: Layout, family: Family, seed: int) -> None:
        self.model, self.method, self.layout, self.family, self.seed = model, method, layout, family, seed
        self.axis: Axis = current_mesh(layout).tensor
        self.added: list[Added] = []
        self.retrained: dict[str, paddle.Tensor] = {}
        self.merges: dict[str, tuple[paddle.nn.Layer, MergedWeight]] = {}
        self.base = dict(canonical_parameters(model, family.name))
        self.penalty_share = 0.0
        self.is_on = True
        self._names = {id(parameter): name for name, parameter in self.base.items()}
        self._hooks: list[tuple[paddle.nn.Layer, OutputHook]] = []
        self._handles: list[HookRemoveHelper] = []
        self._replaced: list[tuple[object, str, object]] = []
        self._originals: list[object] = []
        self._other_values: dict[str, paddle.Tensor] = {}  # values of retrained weights in the other state (on or off)

    # --- names and shards ------------------------------------------------------------------------------------------

    def path_of(self, layer: paddle.nn.Layer) -> str | None:
        """Return the canonical name of a layer that holds weights of the base, itself or in sublayers; else None."""
        for relative, parameter in layer.named_parameters():
            name = self._names.get(id(parameter))
            if name is not None and name.endswith(f".{relative}"):
                return name[: -len(relative) - 1]
        return None

    def layers(self) -> Iterator[tuple[str, paddle.nn.Layer]]:
        """Yield (canonical name, layer) of every layer that holds weights of the base."""
        for layer in self.model.sublayers():
            path = self.path_of(layer)
            if path is not None:
                yield path, layer

    def base_shard(self, name: str) -> Shard:
        """Return this rank's part of a weight of the base."""
        parameter = self.base[name]
        split = self.axis.size > 1 and bool(getattr(parameter, "is_distributed", False))
        return shard_of(
            self.family.name, name, parameter.shape, split, self.model.config, self.axis.size, self.axis.rank
        )

    def row_axis(self, path: str) -> bool:
        """Return whether tensor parallelism splits a matrix along its inputs."""
        return split_axis(self.family.name, f"{path}.weight", 2) == 0

    # --- changes ---------------------------------------------------------------------------------------------------

    def add_parameter(
        self,
        layer: paddle.nn.Layer,
        attribute: str,
        path: str,
        shard: Shard,
        deviation: float,
        dtype: paddle.dtype | None = None,
    ) -> paddle.Tensor:
        """Add a parameter to a layer, with normal values that depend only on the seed and its name.

        Args:
            layer: The layer.
            attribute: Name of the parameter in the layer.
            path: Canonical name of the layer; "" for the network itself.
            shard: This rank's part of the full tensor.
            deviation: Standard deviation; 0 for zeros.
            dtype: Type; None: that of the base's first weight.

        Returns:
            The parameter.
        """
        name = f"{path}.{attribute}".lstrip(".")
        shape = list(shard.shape)
        shape[shard.axis] = sum(stop - start for start, stop in shard.ranges)
        values = (
            draw_normal(self.seed, name, shard) * np.float32(deviation) if deviation else np.zeros(shape, "float32")
        )
        parameter = layer.create_parameter(shape, dtype=dtype or next(iter(self.base.values())).dtype)
        # Optimizer states are saved under this name, so it must not depend on the parameters created before.
        parameter.name = name
        with paddle.no_grad():
            parameter.set_value(paddle.to_tensor(values).astype(parameter.dtype))
        parameter.is_distributed = shard.is_split
        if shard.is_split:
            parameter.split_axis = shard.axis
        setattr(parameter, ADDED, True)
        layer.add_parameter(attribute, parameter)
        self.added.append(Added(name, layer, attribute, parameter, shard))
        return parameter

    def hook_output(self, layer: paddle.nn.Layer, hook: OutputHook) -> None:
        """Replace the output of a layer by `hook(layer, inputs, output)`."""
        self._hooks.append((layer, hook))
        self._handles.append(layer.register_forward_post_hook(hook))

    def replace_attribute(self, owner: object, attribute: str, value: object) -> None:
        """Replace an attribute of an object, such as `forward`."""
        self._replaced.append((owner, attribute, value))
        self._originals.append(owner.__dict__.get(attribute, _MISSING))
        setattr(owner, attribute, value)

    def retrain(self, names: list[str]) -> None:
        """Train these weights of the base as well."""
        for name in names:
            self.retrained[name] = self.base[name]

    def register_merge(self, path: str, layer: paddle.nn.Layer, merged_weight: MergedWeight) -> None:
        """Register the function that `merge` calls for a layer.

        Args:
            path: Canonical name of the layer.
            layer: The layer.
            merged_weight: Function from this rank's weight of the layer to the same weight with the method merged in,
                both in fp32.
        """
        self.merges[path] = (layer, merged_weight)

    # --- on and off ------------------------------------------------------------------------------------------------

    def switch_off(self) -> None:
        """Let the network compute like its base, with the parameters of the base alone.

        Raises:
            UserError: If weights of the base were trained and their old values were not kept.
        """
        if not self.is_on:
            return
        if self.retrained.keys() - self._other_values.keys():
            raise UserError(
                "The adapter cannot be switched off: it also trained weights of the base, whose old values were not kept. "
                "Load the base and the saved adapter again."
            )
        self.is_on = False
        for handle in self._handles:
            handle.remove()
        self._handles = []
        for (owner, attribute, _), before in reversed(list(zip(self._replaced, self._originals, strict=True))):
            delattr(owner, attribute) if before is _MISSING else setattr(owner, attribute, before)
        self._originals = []
        for tensor in self.added:
            del tensor.layer._parameters[tensor.attribute]
        self._swap_retrained()
        self._reset_name_tables()

    def switch_on(self) -> None:
        """Reverse `switch_off`."""
        if self.is_on:
            return
        self.is_on = True
        for tensor in self.added:
            tensor.layer.add_parameter(tensor.attribute, tensor.parameter)
        for owner, attribute, value in self._replaced:
            self._originals.append(owner.__dict__.get(attribute, _MISSING))
            setattr(owner, attribute, value)
        self._handles = [layer.register_forward_post_hook(hook) for layer, hook in self._hooks]
        self._swap_retrained()
        self._reset_name_tables()

    def keep_base(self) -> None:
        """Keep the base's values of the retrained weights before they change, for `switch_off`."""
        self._other_values = {name: parameter.detach().clone() for name, parameter in self.retrained.items()}

    @paddle.no_grad()
    def _swap_retrained(self) -> None:
        for name, other in self._other_values.items():
            parameter = self.retrained[name]
            current = parameter.detach().clone()
            parameter.set_value(other)
            self._other_values[name] = current

    def _reset_name_tables(self) -> None:
        """Drop the table in which a pipeline of PaddleNLP caches the names of its parameters."""
        for table in ("_single_to_pp_mapping", "_pp_to_single_mapping"):
            if hasattr(self.model, table):
                setattr(self.model, table, None)

    def freeze_base(self) -> None:
        """Make exactly the method's tensors and the retrained weights trainable, after the method has added them."""
        for parameter in self.base.values():
            parameter.stop_gradient = True
        for parameter in [*self.retrained.values(), *(tensor.parameter for tensor in self.added)]:
            parameter.stop_gradient = False
        self._reset_name_tables()
        if self.layout.pipeline > 1:
            self._require_gradients()

    def _require_gradients(self) -> None:
        """Require a gradient of what a stage sends: Paddle's pipeline waits for it even if nothing is trained."""
        for path, layer in self.layers():
            if f"{path}.weight" == EMBEDDINGS[self.family.name] and layer._parameters.get("weight") is not None:
                self.hook_output(layer, _require_gradient)


@dataclass
class Adapters:
    """The adapters of a network.

    Attributes:
        by_name: Name -> attachment.
        active: Name of the one that is switched on; None: none.
        merged: Path of a layer -> its weight before merging.
    """

    by_name: dict[str, Attachment]
    active: str | None
    merged: dict[str, paddle.Tensor]


def adapters_of(model: LanguageModel) -> Adapters | None:
    """Return the adapters of a network; None if nothing is attached."""
    return getattr(model, _ATTRIBUTE, None)


def active_attachment(model: LanguageModel) -> Attachment | None:
    """Return the attachment that is switched on; None if there is none."""
    adapters = adapters_of(model)
    return adapters.by_name[adapters.active] if adapters is not None and adapters.active is not None else None


def register(model: LanguageModel, name: str, attachment: Attachment) -> None:
    """Store an attachment under a name and make it the active one."""
    adapters = adapters_of(model)
    if adapters is None:
        adapters = Adapters({}, None, {})
        setattr(model, _ATTRIBUTE, adapters)
    adapters.by_name[name] = attachment
    adapters.active = name


def _require_gradient(layer: paddle.nn.Layer, inputs: tuple[Any, ...], output: paddle.Tensor) -> paddle.Tensor:
    if output.stop_gradient and paddle.is_grad_enabled():
        output.stop_gradient = False
        return output.clone()  # not a leaf: with sequence parallelism PaddleNLP reshapes it in place
    return output


def unsplit_shard(shape: list[int] | tuple[int, ...], axis: int = 0) -> Shard:
    """Return the shard of a tensor that every tensor-parallel rank holds in full."""
    return Shard(tuple(shape), axis, ((0, shape[axis]),))
