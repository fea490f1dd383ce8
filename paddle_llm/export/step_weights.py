"""How each family's weights and settings become those of the one step program (`step_program.py`).

The seven families differ in names, in the order of columns of fused matrices, in norms, activations and positions. All
that is settled here, when the program is written: it is given q | k | v side by side in every family, and rotary heads
whose pairs are (i, i + D/2). A permutation of the columns of queries and keys alike leaves their products as they are.

Shapes: H hidden, N heads, K key-value heads, D head width, V vocabulary, P positions.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from paddle_llm.models.names import EMBEDDINGS, HEADS, is_tied

if TYPE_CHECKING:
    from paddle_llm.export.source import Source


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


@dataclass(frozen=True)
class Plan:
    """What the step program must know of a network.

    Attributes:
        heads, kv_heads, width: N, K, D.
        activation: swiglu (gate | up), gelu (by tanh), relu.
        epsilon: of the norms; rms: whether they are RMSNorms.
        scales: of the queries, by layer.
        norm_first: a norm before attention and MLP; else behind each sum (OPT-350m).
        residual: the normed input is the residual, times this number (ChatGLM-6B; BLOOM with that switch); else None.
        rotary: angles of one position [D/2]; blocks: which of them are turned by the second row of positions, [D/2] of 0 and 1.
        slopes: of ALiBi, [N].
        position_rows: rows of `position_ids`: 1, or 2 (GLM and ChatGLM-6B); position_offset: added before a table is read.
    """

    family: str
    layers: int
    heads: int
    kv_heads: int
    width: int
    vocabulary: int
    activation: str
    epsilon: float
    rms: bool
    scales: tuple[float, ...]
    norm_first: bool = True
    residual: float | None = None
    rotary: np.ndarray | None = None
    blocks: np.ndarray | None = None
    slopes: np.ndarray | None = None
    position_rows: int = 1
    position_offset: int = 0
    most_positions: int | None = None


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
        columns = self._columns if which == "qkv" else None
        bias = f"{names[0]}.bias" in self._known
        return (
            self._side_by_side([f"{name}.weight" for name in names], columns),
            self._side_by_side([f"{name}.bias" for name in names], columns) if bias else None,
        )

    def _one(self, name: str) -> Weight:
        return Weight(self._source.shape(name), lambda: in_fp32(self._source.read(name)))

    def _if_there(self, name: str) -> Weight | None:
        return self._one(name) if name in self._known else None

    def _side_by_side(self, names: list[str], columns: np.ndarray | None) -> Weight:
        """Weights next to each other, the columns in another order where one is given."""
        parts = [self._one(name) for name in names]

        def read() -> np.ndarray:
            whole = np.concatenate([part.read() for part in parts], axis=-1) if len(parts) > 1 else parts[0].read()
            return whole if columns is None else whole[..., columns]

        return Weight((*parts[0].shape[:-1], sum(part.shape[-1] for part in parts)), read)

    # ---- settings ---------------------------------------------------------------------------------------------------

    def _plan(self) -> Plan:
        family, config = self._family, self._config
        layers = sum(1 for name in self._known if name.endswith(f".{self._names.norms[0]}.weight"))
        heads = config.num_attention_heads
        hidden = self._width(self._names.norms[0])
        width = hidden // heads
        columns = sum(map(self._width, self._names.qkv))
        rms = family in ("llama", "qwen2", "chatglm_v2")
        rotary, blocks = _rotary(family, config, width)
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
            activation=_activation(family),
            epsilon=_epsilon(family, config),
            rms=rms,
            scales=_scales(family, config, layers, width),
            norm_first=family != "opt" or bool(getattr(config, "normalize_before", True)),
            residual=chatglm_alpha if chatglm_alpha else 1.0 if normed else None,
            rotary=rotary,
            blocks=blocks,
            slopes=alibi_slopes(heads) if family == "bloom" else None,
            position_rows=2 if two_rows else 1,
            position_offset=_OPT_OFFSET if family == "opt" else 0,
            most_positions=getattr(config, "max_position_embeddings", None)
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
        order = _rotary_order(self._family, self._config, width)
        columns = np.concatenate([part.ravel() for part in (query[:, order], key[:, order], value)])
        return None if np.array_equal(columns, np.arange(len(columns))) else columns


def in_fp32(values: np.ndarray) -> np.ndarray:
    """What a source reads: bfloat16 comes as its bits."""
    if values.dtype == np.uint16:
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32, copy=False)


def alibi_slopes(heads: int) -> np.ndarray:
    """What a head subtracts per token of distance (Press et al. 2022, section 3), [N]."""
    power = 2 ** int(np.floor(np.log2(heads)))
    first = 2.0 ** (-8.0 / power * np.arange(1, power + 1))
    rest = 2.0 ** (-4.0 / power * np.arange(1, 2 * (heads - power) + 1, 2))
    return np.concatenate([first, rest]).astype(np.float32)


def _activation(family: str) -> str:
    if family in ("llama", "qwen2", "chatglm_v2"):
        return "swiglu"
    return "relu" if family == "opt" else "gelu"


def _epsilon(family: str, config: Any) -> float:
    if family == "opt":
        return 1e-5  # PaddleNLP's network does not ask its configuration
    names = {"llama": "rms_norm_eps", "qwen2": "rms_norm_eps", "bloom": "layer_norm_epsilon"}
    return float(getattr(config, names.get(family, "layernorm_epsilon")))


def _scales(family: str, config: Any, layers: int, width: int) -> tuple[float, ...]:
    if family == "chatglm" and not config.attention_scale:
        return tuple(float(layer + 1) for layer in range(layers))
    return (width**-0.5,) * layers


def _rotary(family: str, config: Any, width: int) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Angles of a position [D/2], and which of them are of its second row."""
    half = width // 2
    if family in ("llama", "qwen2"):
        return _llama_angles(family, config), None
    if family == "chatglm_v2":  # a half of each head is turned
        turned = 10000.0 ** (-np.arange(0, half, 2, dtype=np.float32) / half)
        return np.concatenate([turned, np.zeros(half - len(turned))]).astype(np.float32), None
    if family == "chatglm":
        if not config.position_encoding_2d:
            return (10000.0 ** (-np.arange(0, width, 2, dtype=np.float32) / width)).astype(np.float32), None
        turned = (10000.0 ** (-np.arange(0, half, 2, dtype=np.float32) / half)).astype(np.float32)
        return np.tile(turned, 2), np.repeat(np.array([0, 1], np.float32), len(turned))
    return None, None


def _rotary_order(family: str, config: Any, width: int) -> np.ndarray:
    """The columns of a head in an order in which those that turn together are D/2 apart."""
    half, quarter = width // 2, width // 4
    places = np.arange(width)
    if family == "chatglm_v2":  # neighbours turn together, in the first half of the head
        rest = places[half:]
        return np.concatenate([places[0:half:2], rest[:quarter], places[1:half:2], rest[quarter:]])
    if family == "chatglm" and config.position_encoding_2d:  # each half of the head turns by itself
        return places.reshape(2, 2, quarter).transpose(1, 0, 2).ravel()
    return places


def _llama_angles(family: str, config: Any) -> np.ndarray:
    """PaddleNLP's own angles of position 1, with whatever RoPE scaling the configuration has."""
    small = copy.deepcopy(config)
    small.hidden_size = config.hidden_size // config.num_attention_heads
    small.num_attention_heads = small.num_key_value_heads = 1
    small.max_position_embeddings = 16  # of a table that is not looked at
    if family == "llama":
        from paddlenlp.transformers.llama.modeling import LlamaAttention as Attention
    else:
        from paddlenlp.transformers.qwen2.modeling import Qwen2Attention as Attention
    rotary = Attention(small).rotary_emb
    angles = np.asarray(rotary.inv_freq.numpy(), np.float32)
    if _is_linear(config):
        return angles / np.float32(config.rope_scaling_factor)
    return angles


def _is_linear(config: Any) -> bool:
    """Whether positions themselves are divided (Chen et al. 2023)."""
    return getattr(config, "rope_scaling_type", None) == "linear"
