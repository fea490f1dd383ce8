"""The longest sequence that a model supports, for training, generation and export."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from paddlenlp.transformers import PretrainedConfig

# Names of the number of positions in the configurations of all families. The first one that is present counts.
LENGTH_KEYS = ("max_position_embeddings", "max_sequence_length", "seq_length", "n_positions")
_MULTIPLIED = ("linear", "ntk")  # the length is multiplied by `factor`
_UNLIMITED = ("dynamic", "dynamic_ntk")  # the RoPE base grows with the length


def position_limit(config: Mapping[str, Any] | PretrainedConfig) -> int | None:
    """Return the longest sequence that a model supports, including RoPE scaling.

    Linear scaling (Chen et al. 2023) and PaddleNLP's "ntk" multiply the length by `factor`. With dynamic NTK scaling
    any length works. The scaling of LLaMA 3 and YaRN is already included in the published number.

    Args:
        config: Fields of a config.json, or a configuration object of PaddleNLP.

    Returns:
        Number of tokens; None if the length is not limited or not known.
    """
    # `seq_length` of a configuration object is the length of this run's rows.
    names = LENGTH_KEYS if isinstance(config, Mapping) else LENGTH_KEYS[:2]
    length = next((found for name in names if (found := _read(config, name))), None)
    kind, factor = rope_scaling(config)
    if not isinstance(length, int) or kind in _UNLIMITED:
        return None
    return int(min(length * factor, float(_LONGEST))) if kind in _MULTIPLIED else length


_LONGEST = 1 << 40  # avoids an overflow for a wrong factor, which other checks report


def rope_scaling(config: Mapping[str, Any] | PretrainedConfig) -> tuple[str | None, float]:
    """Return the kind of RoPE scaling (None: none) and its factor, as transformers 4 and 5 and PaddleNLP write them."""
    for name in ("rope_scaling", "rope_parameters"):
        found = _read(config, name)
        if isinstance(found, dict):
            kind = found.get("rope_type", found.get("type", "default"))
            if kind not in ("default", None):
                return str(kind), _factor(found.get("factor"))
    kind = _read(config, "rope_scaling_type")
    return (str(kind), _factor(_read(config, "rope_scaling_factor"))) if kind else (None, 1.0)


def _factor(value: Any) -> float:
    usable = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < float("inf")
    return float(value) if usable else 1.0


def _read(config: Mapping[str, Any] | PretrainedConfig, name: str) -> Any:
    return config.get(name) if isinstance(config, Mapping) else getattr(config, name, None)
