"""How each family's weights and settings become those of the one step program (`step_program.py`).

The seven families differ in names, in the order of columns of fused matrices, in norms, activations and positions. All
that is settled here, when the program is written: it is given q | k | v side by side in every family, queries that are scaled
already, and rotary heads whose pairs are (i, i + D/2). A permutation of the columns of queries and keys alike leaves their
products as they are.

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
    """A tensor of the program: its shape, and what reads it, in fp32. The values are not kept."""

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]


class StepWeights:
    """The tensors of the step program, one at a time, in fp32."""

    def __init__(self, source: Source):
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
        return [self._one(name) for name in self._names.position_tables if name in self._known]

    def projections(self) -> tuple[Weight | None, Weight | None]:
        """Return the projections from a narrower embedding to the layers and back (OPT-350m), or None."""
        return self._if_there(self._names.project_in), self._if_there(self._names.project_out)

    def norm(self, which: str, layer: int | None = None) -> tuple[Weight, Weight | None] | None:
        """(weight, bias) of "first", "last", or of a layer's "attention" and "mlp"; None where there is none."""
        names = self._names
        if layer is None:
            name = names.first_norm if which == "first" else names.last_norm
        else:
            name = names.layer.format(layer) + names.norms[which == "mlp"]
        if name is None or f"{name}.weight" not in self._known:
            return None
        return self._one(f"{name}.weight"), self._if_there(f"{name}.bias")

    def linear(self, which: str, layer: int) -> tuple[Weight, Weight | None]:
        """(weight [in, out], bias) of a layer's "qkv", "out", "up" or "down"."""
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

    def _if_there(self, name: str | None) -> Weight | None:
        return self._one(name) if name in self._known and name else None

    def _side_by_side(self, names: list[str]) -> Weight:
        """Weights next to each other."""
        parts = [self._one(name) for name in names]

        def read() -> np.ndarray:
            return np.concatenate([part.read() for part in parts], axis=-1) if len(parts) > 1 else parts[0].read()

        return Weight((*parts[0].shape[:-1], sum(part.shape[-1] for part in parts)), read)

    def _scaled_queries(self, qkv: Weight, layer: int) -> Weight:
        """q | k | v with rotary pairs (i, i + D/2), the columns of the queries times the scale of the scores."""
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
        """Columns of a part of the first layer."""
        return self._source.shape(f"{self._names.layer.format(0)}{part}.weight")[-1]

    def _column_orders(self) -> np.ndarray | None:
        """Which column of the matrix as it is read stands where in q | k | v with rotary pairs (i, i + D/2); None: all do."""
        plan = self.plan
        heads, kv_heads, width = plan.heads, plan.kv_heads, plan.width
        group = heads // kv_heads
        if self._names.interleaved_qkv:
            # By key-value head: its queries, its key, its value.
            places = np.arange((heads + 2 * kv_heads) * width).reshape(kv_heads, group + 2, width)
            query, key, value = places[:, :group].reshape(heads, width), places[:, group], places[:, group + 1]
        else:
            places = np.arange((heads + 2 * kv_heads) * width).reshape(-1, width)
            query, key, value = np.split(places, [heads, heads + kv_heads])
        order = rotary_order(self._family, self._config, width)
        columns = np.concatenate([part.ravel() for part in (query[:, order], key[:, order], value)])
        return None if np.array_equal(columns, np.arange(len(columns))) else columns


def scaled(weight: Weight, factor: float) -> Weight:
    return Weight(weight.shape, lambda: weight.read() * np.float32(factor))
