"""Runs the transformer layers of a network one after the other, with the weights of one layer in memory.

The network is built without weights. Its embedding and everything else before the first layer is loaded once to compute the
inputs of that layer; then each layer is loaded, run on the inputs of all samples, and released.

Shapes: B rows, S tokens, H hidden, T tokens of a batch, I inputs of a linear layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import reduce
from typing import TYPE_CHECKING, Any

import numpy as np
import paddle

from paddle_llm.config.layout import Layout
from paddle_llm.families import Family
from paddle_llm.models.build import build_network
from paddle_llm.models.incremental import IncrementalNetwork
from paddle_llm.models.prompt import Prompt
from paddle_llm.models.weights.weight_shapes import initialization_disabled

if TYPE_CHECKING:
    from paddlenlp.transformers import PretrainedConfig

_TOKENS_PER_BATCH = 4096


class _Reached(Exception):
    """Ends a forward pass at the layer whose inputs are recorded."""


class LayeredNetwork:
    """A network whose layers run one at a time, in fp32 and evaluation mode.

    Args:
        config: PaddleNLP's configuration of the model in one process, with nothing fused.
        family: Family of the model.
        read: Function from the canonical name of a weight to its values, float32 in PaddleNLP's layout.
    """

    def __init__(self, config: PretrainedConfig, family: Family, read: Callable[[str], np.ndarray]) -> None:
        self._family, self._read = family, read
        with paddle.LazyGuard(), initialization_disabled():
            self._model: Any = build_network(config, Layout(), family, dtype="float32")
        self._model.eval()
        self.count = int(getattr(config, family.config_json.layers))
        self._hidden: list[paddle.Tensor] = []
        self._call: Callable[[Any, paddle.Tensor], Any] | None = None

    def layer_path(self, index: int) -> str:
        """Return the path of a layer, which its canonical names begin with, without the last dot."""
        return self._family.static_program.layer.format(index).removesuffix(".")

    def start(self, prompts: Sequence[Prompt]) -> None:
        """Compute the inputs of the first layer for samples of one length."""
        rows = batch_rows(len(prompts), len(prompts[0]))
        first, inside = self._layer(0), self._family.static_program.layer.split("{}")[0]
        outside = [name for name in self._names() if not name.startswith(inside) and not self._is_after_layers(name)]
        calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

        def record(*inputs: Any, **named: Any) -> None:
            calls.append((inputs, named))
            raise _Reached

        self._hidden = []
        with self._loaded(outside), _replaced_forward(first, record), paddle.no_grad():
            for start in range(0, len(prompts), rows):
                try:
                    IncrementalNetwork(self._model, self._family.name, prompts[start : start + rows], 0).read_all()
                except _Reached:
                    inputs, named = calls.pop()
                    self._hidden.append(inputs[0] if inputs else named["hidden_states"])
        # All batches have the same masks and positions, because they have the same shape.
        rest, others = inputs[1:], {key: value for key, value in named.items() if key != "hidden_states"}
        if inputs:
            self._call = lambda layer, hidden: layer(hidden, *rest, **others)
        else:
            self._call = lambda layer, hidden: layer(hidden_states=hidden, **others)

    @contextmanager
    def layer(self, index: int) -> Iterator[Any]:
        """Load the weights of a layer, yield it, and release its weights."""
        with self._loaded([name for name in self._names() if name.startswith(f"{self.layer_path(index)}.")]):
            yield self._layer(index)

    def inputs_of(self, layer: Any, linear: str) -> Iterator[paddle.Tensor]:
        """Yield the inputs [T, I] of a linear layer inside a loaded layer, one batch at a time.

        Args:
            layer: The loaded layer.
            linear: Path of the linear layer inside of it.
        """
        target: Any = reduce(getattr, linear.split("."), layer)
        found: list[paddle.Tensor] = []

        def record(inputs: paddle.Tensor, *_: Any, **__: Any) -> None:
            found.append(inputs)
            raise _Reached

        with _replaced_forward(target, record):
            for hidden_BSH in self._hidden:
                with paddle.no_grad():
                    try:
                        self._run(layer, hidden_BSH)
                    except _Reached:
                        inputs = found.pop()
                        yield inputs.reshape([-1, inputs.shape[-1]])
                        continue
                raise RuntimeError(f"{linear} is not called by {type(layer).__name__}")

    def advance(self, layer: Any) -> None:
        """Replace the inputs of a loaded layer with its outputs."""
        with paddle.no_grad():
            for number, hidden_BSH in enumerate(self._hidden):
                self._hidden[number] = self._run(layer, hidden_BSH)

    def hidden(self) -> Iterator[np.ndarray]:
        """Yield the current inputs of the next layer, one batch at a time."""
        for hidden_BSH in self._hidden:
            yield hidden_BSH.numpy()

    def _run(self, layer: Any, hidden_BSH: paddle.Tensor) -> paddle.Tensor:
        assert self._call is not None, "start() has not been called"
        outputs = self._call(layer, hidden_BSH)
        return outputs[0] if isinstance(outputs, tuple | list) else outputs

    def _layer(self, index: int) -> Any:
        return reduce(getattr, self.layer_path(index).split("."), self._model)

    def _names(self) -> list[str]:
        """Return the names of all parameters in the network."""
        return [name for name, _ in self._model.named_parameters()]

    def _is_after_layers(self, name: str) -> bool:
        weights, program = self._family.weights, self._family.static_program
        after = (f"{program.last_norm}.", f"{program.project_out}", weights.head or "-", weights.tied_head or "-")
        return name.startswith(after)

    @contextmanager
    def _loaded(self, names: Sequence[str]) -> Iterator[None]:
        """Give parameters values, and remove them afterwards."""
        owners = []
        for name in names:
            path, _, last = name.rpartition(".")
            owner = reduce(getattr, path.split("."), self._model)
            owners.append((owner, last, owner._parameters[last]))
            owner._parameters[last] = paddle.to_tensor(self._read(name))
        try:
            yield
        finally:
            for owner, last, empty in owners:
                owner._parameters[last] = empty


def set_weight(layer: Any, linear: str, weight_IO: np.ndarray) -> None:
    """Replace the weight of a linear layer inside a loaded layer."""
    owner = reduce(getattr, linear.split("."), layer)
    owner._parameters["weight"] = paddle.to_tensor(weight_IO)


def batch_rows(count: int, length: int) -> int:
    """Return the samples per batch: all batches are equal and have at most 4096 tokens, or one sample."""
    most = max(_TOKENS_PER_BATCH // length, 1)
    return next(rows for rows in range(min(most, count), 0, -1) if count % rows == 0)


@contextmanager
def _replaced_forward(layer: Any, function: Callable[..., Any]) -> Iterator[None]:
    """Let a layer call a function instead of its `forward`."""
    layer.forward = function
    try:
        yield
    finally:
        del layer.forward
