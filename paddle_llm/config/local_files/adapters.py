"""Finds adapters by their `adapter_config.json`, for messages about folders that were given in the wrong place."""

from __future__ import annotations

import json
from pathlib import Path

from paddle_llm.core.artifacts import ADAPTER_CONFIG, MODEL_CONFIG

_SHOWN = 3


# Files of adapters that are not read -> what wrote them and what to do.
_OTHERS = {
    "lora_config.json": "PaddleNLP's LoRA, which is not read: merge it with PaddleNLP (llm/tools/merge_lora_params.py)",
    "prefix_model_config.json": "PaddleNLP's prefix tuning, which is not read: train it again here (--prefix_tuning)",
    "adapters.safetensors": "MLX's LoRA, which is not read: fuse it into its base (mlx_lm.fuse)",
}


def what_it_holds(folder: Path) -> str:
    """A sentence on a folder that is not an adapter as it is read here: adapters of other libraries, adapters one level below
    (checkpoint-100), a model; empty if nothing is known."""
    for name, what in _OTHERS.items():
        if (folder / name).is_file():
            return f" {name} is of {what}."
    if found := adapters_below(folder):
        return found
    return " It holds a whole model." if (folder / MODEL_CONFIG).is_file() else ""


def adapters_below(folder: Path) -> str:
    """A sentence that names the adapters one level below a folder, such as checkpoint-100; empty without any."""
    found = sorted(file.parent for file in folder.glob(f"*/{ADAPTER_CONFIG}"))
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return f" Adapters are in {', '.join(map(str, found[:_SHOWN]))}{more}." if found else ""


def instead_of_model(folder: Path) -> str:
    """What to give if a model is asked for and the folder is an adapter; empty if it is not an adapter."""
    if not (folder / ADAPTER_CONFIG).is_file():
        return ""
    try:
        described = json.loads((folder / ADAPTER_CONFIG).read_bytes())
        base = described.get("base") or described.get("base_model_name_or_path")
    except (ValueError, AttributeError, RecursionError, OSError):
        base = None
    return (
        f"{folder} is an adapter, not a model. Give the model that it was trained over ({base or 'not named in ' + ADAPTER_CONFIG}) as "
        f"--model_name_or_path, and the adapter as --lora_path {folder}."
    )
