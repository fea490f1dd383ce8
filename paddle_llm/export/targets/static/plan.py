"""What the step program must know of a network besides its weights: heads, norms, positions, by family."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np


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


def alibi_slopes(heads: int) -> np.ndarray:
    """What a head subtracts per token of distance (Press et al. 2022, section 3), [N]."""
    power = 2 ** int(np.floor(np.log2(heads)))
    first = 2.0 ** (-8.0 / power * np.arange(1, power + 1))
    rest = 2.0 ** (-4.0 / power * np.arange(1, 2 * (heads - power) + 1, 2))
    return np.concatenate([first, rest]).astype(np.float32)


def activation(family: str) -> str:
    if family in ("llama", "qwen2", "chatglm_v2"):
        return "swiglu"
    return "relu" if family == "opt" else "gelu"


def epsilon(family: str, config: Any) -> float:
    if family == "opt":
        return 1e-5  # PaddleNLP's network does not ask its configuration
    names = {"llama": "rms_norm_eps", "qwen2": "rms_norm_eps", "bloom": "layer_norm_epsilon"}
    return float(getattr(config, names.get(family, "layernorm_epsilon")))


def scales(family: str, config: Any, layers: int, width: int) -> tuple[float, ...]:
    if family == "chatglm" and not config.attention_scale:
        return tuple(float(layer + 1) for layer in range(layers))
    return (width**-0.5,) * layers


def rotary_angles(family: str, config: Any, width: int) -> tuple[np.ndarray | None, np.ndarray | None]:
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


def rotary_order(family: str, config: Any, width: int) -> np.ndarray:
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
