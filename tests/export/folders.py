"""Model folders as training writes them, and a reader of the files of an export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import safetensors

from paddle_llm.models.weights.files import write_safetensors
from tests.helpers.models.networks import WRITERS

# Tiny, with query heads that outnumber key-value heads where the family has that, and a vocabulary that no degree divides.
SHAPES: dict[str, dict[str, Any]] = {
    "llama": {"num_hidden_layers": 2, "num_key_value_heads": 2, "vocab_size": 129},
    "chatglm": {"num_layers": 2, "vocab_size": 129},
    "chatglm_v2": {"num_layers": 2, "padded_vocab_size": 129},
    "bloom": {"n_layer": 2, "vocab_size": 129},
    "opt": {"num_hidden_layers": 2, "vocab_size": 129},
    "glm": {"num_layers": 2, "vocab_size": 129},
    "qwen2": {"num_hidden_layers": 2, "num_key_value_heads": 2, "vocab_size": 129},
    "mistral": {"num_hidden_layers": 2, "vocab_size": 129},
}


def write_config(folder: Path, family: str, **changes: Any) -> Path:
    return WRITERS[family](folder, **{**SHAPES[family], **changes})


def random_weights(folder: Path, family: str, dtype: str = "float32", seed: int = 0) -> dict[str, np.ndarray]:
    """Return random values for every weight of a folder's config.json, by canonical name; bfloat16 as bits."""
    from paddle_llm.models.weights.names import canonical_parameters
    from tests.helpers.models.networks import build

    random, found = np.random.default_rng(seed), {}
    for name, parameter in canonical_parameters(build(folder), family):
        values = random.standard_normal(parameter.shape).astype(np.float32) * 0.2
        found[name] = {
            "float32": values,
            "float16": values.astype(np.float16),
            "bfloat16": (values.view(np.uint32) >> 16).astype(np.uint16),
        }[dtype]
    return found


def write_native(folder: Path, family: str, dtype: str = "float32", **changes: Any) -> dict[str, np.ndarray]:
    """Write a folder like OUTPUT/model of a run, with PaddleNLP's names and layouts, and return its weights."""
    write_config(folder, family, **changes)
    tensors = random_weights(folder, family, dtype)
    write_safetensors(folder / "model.safetensors", tensors)
    return tensors


def stored_in(folder: Path) -> dict[str, tuple[str, np.ndarray]]:
    """Return name -> (dtype as in the file, values; bfloat16 as bits) of all safetensors files."""
    numpy_of = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        for name, one in safetensors.deserialize(file.read_bytes()):
            values = np.frombuffer(one["data"], numpy_of[one["dtype"]]).reshape(one["shape"])
            found[name] = (one["dtype"], values)
    return found


def same_bits(one: np.ndarray, other: np.ndarray) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype and one.tobytes() == other.tobytes()
