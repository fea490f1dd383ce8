"""How each family's weights and settings become those of the one step program (`step_program.py`).

The seven families differ in names, in the order of columns of fused matrices, in norms, activations and positions. All
that is settled here, when the program is written: it is given q | k | v side by side in every family, queries that are scaled
already, and rotary heads whose pairs are (i, i + D/2). A permutation of the columns of queries and keys alike leaves their
products as they are.

Shapes: H hidden, N heads, K key-value heads, D head width, V vocabulary, P positions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from paddle_llm.config.positions import position_limit
from paddle_llm.export.source.dtypes import widened
from paddle_llm.export.targets.static.plan import (
    Plan,
    activation,
    alibi_slopes,
    epsilon,
    rotary_angles,
    rotary_order,
    scales,
)
from paddle_llm.models.weights.names import EMBEDDINGS, HEADS, is_tied

if TYPE_CHECKING:
    from paddle_llm.export.source.source import Source


@dataclass(frozen=True)
class _Names:
    """Canonical names: of a layer ({} is its number), of its parts, and of what is around the layers."""

    layer: str
    qkv: tuple[str, ...]
    out: str
    up: tuple[str, ...]
    down: str
    norms: tuple[str, str]
    last_norm: str
    first_norm: str | None = None
    positions: tuple[str, ...] = ()


_GLM_PARTS = {
    "qkv": ("attention.query_key_value",),
    "out": "attention.dense",
    "up": ("mlp.dense_h_to_4h",),
    "down": "mlp.dense_4h_to_h",
    "norms": ("input_layernorm", "post_attention_layernorm"),
}
_SELF_PARTS: dict[str, Any] = {**_GLM_PARTS, "qkv": ("self_attention.query_key_value",), "out": "self_attention.dense"}
_LLAMA_PARTS: dict[str, Any] = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "out": "self_attn.o_proj",
    "up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": "mlp.down_proj",
    "norms": ("input_layernorm", "post_attention_layernorm"),
}
_NAMES = {
    "llama": _Names("llama.layers.{}.", last_norm="llama.norm", **_LLAMA_PARTS),
    "qwen2": _Names("qwen2.layers.{}.", last_norm="qwen2.norm", **_LLAMA_PARTS),
    "chatglm_v2": _Names(
        "chatglm_v2.encoder.layers.{}.", last_norm="chatglm_v2.encoder.final_layernorm", **_SELF_PARTS
    ),
    "bloom": _Names("bloom.h.{}.", last_norm="bloom.ln_f", first_norm="bloom.word_embeddings_layernorm", **_SELF_PARTS),
    "opt": _Names(
        "opt.decoder.layers.{}.",
        qkv=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        out="self_attn.out_proj",
        up=("linear1",),
        down="linear2",
        norms=("norm1", "norm2"),
        last_norm="opt.decoder.final_layer_norm",
        positions=("opt.embeddings.position_embeddings.weight",),
    ),
    "chatglm": _Names(
        "chatglm.transformer.layers.{}.",
        last_norm="chatglm.transformer.final_layernorm",
        **_GLM_PARTS,  # type: ignore[arg-type]
    ),
    "glm": _Names(
        "glm.transformer.layers.{}.",
        last_norm="glm.transformer.final_layernorm",
        positions=("glm.transformer.position_embeddings.weight", "glm.transformer.block_position_embeddings.weight"),
        **_GLM_PARTS,  # type: ignore[arg-type]
    ),
}
_OPT_OFFSET = 2  # OPT's table of positions begins with two rows that nothing reads


class Weight(NamedTuple):
    """A tensor of the program: its shape, and what reads it, in fp32. The values are not kept."""

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]


class StepWeights:
    """The tensors of the step program, one at a time, in fp32."""

    def __init__(self, source: Source):
        self._source, self._family, self._config = source, source.family.name, source.config
        self._known = frozenset(source.names())
        self._names = _NAMES[self._family]
        self.plan = self._plan()
        self._columns = self._column_orders()

    # ---- tensors ----------------------------------------------------------------------------------------------------

    def embedding_VH(self) -> Weight:
        return self._one(EMBEDDINGS[self._family])

    def head_HV(self) -> Weight | None:
        """None: the embedding is the head."""
        tied = self._family == "glm" or is_tied(self._family, self._config)
        return None if tied else self._one(HEADS[self._family])

    def position_tables(self) -> list[Weight]:
        return [self._one(name) for name in self._names.positions if name in self._known]

    def projections(self) -> tuple[Weight | None, Weight | None]:
        """OPT's from a narrower embedding and back to it."""
        return self._if_there("opt.embeddings.project_in.weight"), self._if_there("opt.decoder.project_out.weight")

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

    def _if_there(self, name: str) -> Weight | None:
        return self._one(name) if name in self._known else None

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
        family, config = self._family, self._config
        layers = sum(1 for name in self._known if name.endswith(f".{self._names.norms[0]}.weight"))
        heads = config.num_attention_heads
        hidden = self._width(self._names.norms[0])
        width = hidden // heads
        columns = sum(map(self._width, self._names.qkv))
        rms = family in ("llama", "qwen2", "chatglm_v2")
        rotary, blocks = rotary_angles(family, config, width)
        chatglm_alpha = (2 * layers) ** 0.5 if family == "chatglm" else None
        normed = family in ("bloom", "chatglm_v2") and config.apply_residual_connection_post_layernorm
        two_rows = family == "chatglm" or (family == "glm" and config.block_position_encoding)
        return Plan(
            family=family,
            layers=layers,
            heads=heads,
            kv_heads=(columns - hidden) // (2 * width),
            width=width,
            vocabulary=self._source.shape(EMBEDDINGS[family])[0],
            activation=activation(family),
            epsilon=epsilon(family, config),
            rms=rms,
            scales=scales(family, config, layers, width),
            norm_first=family != "opt" or bool(getattr(config, "normalize_before", True)),
            residual=chatglm_alpha if chatglm_alpha else 1.0 if normed else None,
            rotary=rotary,
            blocks=blocks,
            slopes=alibi_slopes(heads) if family == "bloom" else None,
            position_rows=2 if two_rows else 1,
            position_offset=_OPT_OFFSET if family == "opt" else 0,
            most_positions=position_limit(config)
            or getattr(config, "max_position_embeddings", None)
            or getattr(config, "max_sequence_length", None),
        )

    def _width(self, part: str) -> int:
        """Columns of a part of the first layer."""
        return self._source.shape(f"{self._names.layer.format(0)}{part}.weight")[-1]

    def _column_orders(self) -> np.ndarray | None:
        """Which column of the matrix as it is read stands where in q | k | v with rotary pairs (i, i + D/2); None: all do."""
        plan = self.plan
        heads, kv_heads, width = plan.heads, plan.kv_heads, plan.width
        group = heads // kv_heads
        if self._family in ("bloom", "chatglm"):
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
