"""Settings of the step program besides its weights: heads, norms, positions."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from paddle_llm.families import Family
from paddle_llm.families.spec import load_class

if TYPE_CHECKING:
    from paddlenlp.transformers import PretrainedConfig


@dataclass(frozen=True)
class Plan:
    """Settings of the step program.

    Attributes:
        family: Name of the model family.
        layers: Number of layers.
        heads, kv_heads, width: N, K, D.
        vocabulary: V.
        activation: `swiglu` (gate | up), `gelu` (tanh approximation) or `relu`.
        epsilon: Epsilon of the norms.
        rms: Whether the norms are RMSNorms.
        scales: Factor of the queries by layer.
        norm_first: Whether a norm precedes attention and MLP; otherwise one follows each sum (OPT-350m).
        residual: Factor of the normed input if that is the residual (ChatGLM-6B, an option of BLOOM), otherwise None.
        rotary: Angles of one position [D/2].
        blocks: 1 for each angle that belongs to the second row of positions, otherwise 0, [D/2].
        slopes: Slopes of ALiBi, [N].
        position_rows: Number of rows of `position_ids`: 1, or 2 (GLM and ChatGLM-6B).
        position_offset: Number added to a position before it is looked up in a table.
        most_positions: Maximum number of tokens of a text; None: unlimited.
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
    """Return what each head subtracts per token of distance (Press et al. 2022, section 3), [N]."""
    power = 2 ** int(np.floor(np.log2(heads)))
    first = 2.0 ** (-8.0 / power * np.arange(1, power + 1))
    rest = 2.0 ** (-4.0 / power * np.arange(1, 2 * (heads - power) + 1, 2))
    return np.concatenate([first, rest]).astype(np.float32)


def epsilon(family: Family, config: PretrainedConfig) -> float:
    """Return the epsilon of the norms."""
    key = family.config_json.epsilon
    return float(getattr(config, key)) if isinstance(key, str) else key


def scales(family: Family, config: PretrainedConfig, layers: int, width: int) -> tuple[float, ...]:
    """Return the factor of the queries in each layer."""
    if family.static_program.scaled_by_layer and not config.attention_scale:
        return tuple(float(layer + 1) for layer in range(layers))
    return (width**-0.5,) * layers


def residual(family: Family, config: PretrainedConfig, layers: int) -> float | None:
    """Return the factor of the normed input if that is the residual, otherwise None."""
    kind = family.static_program.residual
    if kind == "sqrt(2 layers)":
        return float((2 * layers) ** 0.5)
    return 1.0 if kind == "configured" and config.apply_residual_connection_post_layernorm else None


def position_rows(family: Family, config: PretrainedConfig) -> int:
    """Return the number of rows of `position_ids`: 1 or 2."""
    rows = family.static_program.position_rows
    return rows if isinstance(rows, int) else 2 if getattr(config, rows) else 1


def rotary_angles(family: Family, config: PretrainedConfig, width: int) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Return the angles of one position [D/2] and which of them belong to the second row of positions."""
    half, kind = width // 2, family.static_program.rotary
    if kind == "halves":
        return _table_angles(str(family.static_program.rotary_class), config), None
    if kind == "half the head":
        turned = 10000.0 ** (-np.arange(0, half, 2, dtype=np.float32) / half)
        return np.concatenate([turned, np.zeros(half - len(turned))]).astype(np.float32), None
    if kind == "two-dimensional":
        if not config.position_encoding_2d:
            return (10000.0 ** (-np.arange(0, width, 2, dtype=np.float32) / width)).astype(np.float32), None
        turned = (10000.0 ** (-np.arange(0, half, 2, dtype=np.float32) / half)).astype(np.float32)
        return np.tile(turned, 2), np.repeat(np.array([0, 1], np.float32), len(turned))
    return None, None


def rotary_order(family: Family, config: PretrainedConfig, width: int) -> np.ndarray:
    """Return an order of the columns of a head in which columns that rotate together are D/2 apart."""
    half, quarter, kind = width // 2, width // 4, family.static_program.rotary
    columns = np.arange(width)
    if kind == "half the head":  # neighbours rotate together
        rest = columns[half:]
        return np.concatenate([columns[0:half:2], rest[:quarter], columns[1:half:2], rest[quarter:]])
    if kind == "two-dimensional" and config.position_encoding_2d:  # each half of the head rotates by itself
        return columns.reshape(2, 2, quarter).transpose(1, 0, 2).ravel()
    return columns


def _table_angles(attention_class: str, config: PretrainedConfig) -> np.ndarray:
    """Return PaddleNLP's angles of position 1, with the RoPE scaling of the configuration."""
    small = copy.deepcopy(config)
    small.hidden_size = config.hidden_size // config.num_attention_heads
    small.num_attention_heads = small.num_key_value_heads = 1
    small.max_position_embeddings = 16  # size of a table that is not read
    rotary = load_class(attention_class)(small).rotary_emb
    angles = np.asarray(rotary.inv_freq.numpy(), np.float32)
    # Linear scaling divides the positions themselves (Chen et al. 2023).
    if getattr(config, "rope_scaling_type", None) == "linear":
        return angles / np.float32(config.rope_scaling_factor)
    return angles
