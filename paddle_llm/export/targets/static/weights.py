"""Converts the weights and settings of each family to those of the step program (`program.py`).

Families differ in names, in the order of columns of fused matrices, in norms, activations and positions. These
differences are removed when the program is written: every family has q | k | v side by side, scaled queries, and rotary
heads whose pairs are (i, i + D/2). The same permutation of the columns of queries and keys does not change their
products.

Shapes: H hidden, N heads, K key-value heads, D head width, V vocabulary, P positions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from paddle_llm.export.source.dtypes import widened
from paddle_llm.export.targets.static.plan import (
    Plan,
    alibi_slopes,
    epsilon,
    position_rows,
    residual,
    rotary_angles,
    rotary_order,
    scales,
)
from paddle_llm.families.positions import position_limit

if TYPE_CHECKING:
    from paddle_llm.export.source.source import Source


class Weight(NamedTuple):
    """A tensor of the program.

    Attributes:
        shape: Shape.
        read: Function that reads the values in fp32; they are not stored.
    """

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]


class StepWeights:
    """The tensors of the step program, read one at a time in fp32.

    Args:
        source: Model that is exported.

    Attributes:
        plan: Settings of the program.
    """

    def __init__(self, source: Source) -> None:
        self._source, self._family, self._config = source, source.family, source.config
        self._known = frozenset(source.names())
        self._names = self._family.static_program
        self.plan = self._plan()
        self._columns = self._column_orders()

    # ---- tensors ----------------------------------------------------------------------------------------------------

    def embedding_VH(self) -> Weight:
        """Return the token embedding."""
        return self._one(self._family.weights.embedding)

    def head_HV(self) -> Weight | None:
        """Return the head, or None if the embedding is the head."""
        name = self._family.weights.head
        return None if name is None or self._family.is_tied(self._config) else self._one(name)

    def position_tables(self) -> list[Weight]:
        """Return the tables of learned positions."""
        return [self._one(name) for name in self._names.position_tables if name in self._known]

    def projections(self) -> tuple[Weight | None, Weight | None]:
        """Return the projections from a narrower embedding to the layers and back (OPT-350m), or None."""
        return self._if_known(self._names.project_in), self._if_known(self._names.project_out)

    def norm(self, which: str, layer: int | None = None) -> tuple[Weight, Weight | None] | None:
        """Return weight and bias of a norm: "first", "last", or a layer's "attention" or "mlp"; None without it."""
        names = self._names
        if layer is None:
            name = names.first_norm if which == "first" else names.last_norm
        else:
            name = names.layer.format(layer) + names.norms[which == "mlp"]
        if name is None or f"{name}.weight" not in self._known:
            return None
        return self._one(f"{name}.weight"), self._if_known(f"{name}.bias")

    def linear(self, which: str, layer: int) -> tuple[Weight, Weight | None]:
        """Return weight [in, out] and bias of a layer's "qkv", "out", "up" or "down"."""
        parts = getattr(self._names, which)
        parts = [parts] if isinstance(parts, str) else parts
        names = [self._names.layer.format(layer) + part for part in parts]
        weight = self._side_by_side([f"{name}.weight" for name in names])
        bias = self._side_by_side([f"{name}.bias" for name in names]) if f"{names[0]}.bias" in self._known else None
        if which != "qkv":
            return weight, bias
        return self._scaled_queries(weight, layer), None if bias is None else self._scaled_queries(bias, layer)

    def _one(self, name: str) -> Weight:
        return Weight(self._source.shape(name), lambda: widened(self._source.read(name)))

    def _if_known(self, name: str | None) -> Weight | None:
        return self._one(name) if name in self._known and name else None

    def _side_by_side(self, names: list[str]) -> Weight:
        """Return the weights concatenated along their columns."""
        parts = [self._one(name) for name in names]

        def read() -> np.ndarray:
            return np.concatenate([part.read() for part in parts], axis=-1) if len(parts) > 1 else parts[0].read()

        return Weight((*parts[0].shape[:-1], sum(part.shape[-1] for part in parts)), read)

    def _scaled_queries(self, qkv: Weight, layer: int) -> Weight:
        """Return q | k | v with rotary pairs (i, i + D/2) and queries multiplied by the scale of the scores."""
        plan = self.plan
        factors = np.ones(qkv.shape[-1], np.float32)
        factors[: plan.heads * plan.width] = plan.scales[layer]

        def read() -> np.ndarray:
            whole = qkv.read()
            return (whole if self._columns is None else whole[..., self._columns]) * factors

        return Weight(qkv.shape, read)

    # ---- settings ---------------------------------------------------------------------------------------------------

    def _plan(self) -> Plan:
        family, config, spec = self._family, self._config, self._names
        layers = sum(1 for name in self._known if name.endswith(f".{spec.norms[0]}.weight"))
        heads = config.num_attention_heads
        hidden = self._width(spec.norms[0])
        width = hidden // heads
        columns = sum(map(self._width, spec.qkv))
        rotary, blocks = rotary_angles(family, config, width)
        return Plan(
            family=family.name,
            layers=layers,
            heads=heads,
            kv_heads=(columns - hidden) // (2 * width),
            width=width,
            vocabulary=self._source.shape(family.weights.embedding)[0],
            activation=spec.activation,
            epsilon=epsilon(family, config),
            rms=spec.rms_norm,
            scales=scales(family, config, layers, width),
            norm_first=spec.norm_first is None or bool(getattr(config, spec.norm_first, True)),
            residual=residual(family, config, layers),
            rotary=rotary,
            blocks=blocks,
            slopes=alibi_slopes(heads) if family.network.positions == "ALiBi" else None,
            position_rows=position_rows(family, config),
            position_offset=spec.position_offset,
            most_positions=self._most_positions(),
        )

    def _most_positions(self) -> int | None:
        """Return the number of positions; the program attends to all of them, so an attention window limits it."""
        config = self._config
        limits = [
            position_limit(config)
            or getattr(config, "max_position_embeddings", None)
            or getattr(config, "max_sequence_length", None)
        ]
        window = self._family.config_json.attention_window
        limits.append(getattr(config, window) if window else None)
        return min((one for one in limits if one is not None), default=None)

    def _width(self, part: str) -> int:
        """Return the number of columns of a part of the first layer."""
        return self._source.shape(f"{self._names.layer.format(0)}{part}.weight")[-1]

    def _column_orders(self) -> np.ndarray | None:
        """Return the stored columns in the order q | k | v with rotary pairs (i, i + D/2); None if they have it."""
        plan = self.plan
        heads, kv_heads, width = plan.heads, plan.kv_heads, plan.width
        group = heads // kv_heads
        if self._names.interleaved_qkv:
            # By key-value head: its queries, its key, its value.
            stored = np.arange((heads + 2 * kv_heads) * width).reshape(kv_heads, group + 2, width)
            query, key, value = stored[:, :group].reshape(heads, width), stored[:, group], stored[:, group + 1]
        else:
            stored = np.arange((heads + 2 * kv_heads) * width).reshape(-1, width)
            query, key, value = np.split(stored, [heads, heads + kv_heads])
        order = rotary_order(self._family, self._config, width)
        columns = np.concatenate([part.ravel() for part in (query[:, order], key[:, order], value)])
        return None if np.array_equal(columns, np.arange(len(columns))) else columns


def scaled(weight: Weight, factor: float) -> Weight:
    """Return a weight times a factor."""
    return Weight(weight.shape, lambda: weight.read() * np.float32(factor))
