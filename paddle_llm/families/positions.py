"""The number of positions of a model, for training, generation and export."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Names of the number of positions in the configurations of all families. The first one that is present counts.
LENGTH_KEYS = ("max_position_embeddings", "max_sequence_length", "seq_length", "n_positions")
_DIVIDED = ("linear", "ntk")  # positions up to `factor` times the length are within the trained ones
_OPEN = ("dynamic", "dynamic_ntk")  # the base grows with the length


def position_limit(config: Mapping[str, Any] | Any) -> int | None:
    """Return the longest sequence that a model computes, RoPE scaling included.

    Linear scaling (Chen et al. 2023) and PaddleNLP's "ntk" multiply the length by `factor`. With dynamic NTK scaling
    any length works. The scaling of LLaMA 3 and YaRN is already part of the published number.

    Args:
        config: Fields of a config.json, or a configuration object of PaddleNLP.

    Returns:
        Number of tokens; None if the length is not limited or not known.
    """
    # `seq_length` of a configuration object is the length of this run's rows.
    names = LENGTH_KEYS if isinstance(config, Mapping) else LENGTH_KEYS[:2]
    length = next((found for name in names if (found := _read(config, name))), None)
    kind, factor = rope_scaling(config)
    if not isinstance(length, int) or kind in _OPEN:
        return None
    return int(min(length * factor, float(_LONGEST))) if kind in _DIVIDED else length


_LONGEST = 1 << 40  # a factor beyond it is a mistake that other checks name; here it must only not overflow


def rope_scaling(config: Mapping[str, Any] | Any) -> tuple[str | None, float]:
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


def _read(config: Mapping[str, Any] | Any, name: str) -> Any:
    return config.get(name) if isinstance(config, Mapping) else getattr(config, name, None)
