"""Recognise adapters by their file names, for messages about folders that were given for the wrong option."""

from __future__ import annotations

from pathlib import Path

from paddle_llm.core.artifacts import ADAPTER_CONFIG, MODEL_CONFIG
from paddle_llm.core.json_files import parse_json

_SHOWN = 3


# File of an adapter that is not read -> its origin and a remedy.
_OTHERS = {
    "lora_config.json": "PaddleNLP's LoRA, which is not read; merge it with PaddleNLP (llm/tools/merge_lora_params.py)",
    "prefix_model_config.json": "PaddleNLP's prefix tuning, which is not read; train the prefix again (--prefix_tuning)",
    "adapters.safetensors": "MLX's LoRA, which is not read; fuse it into its base model (mlx_lm.fuse)",
}


def describe_folder(folder: Path) -> str:
    """Return a sentence about a folder that is not a supported adapter; "" if nothing is known.

    It may contain an adapter of another library, adapters one level below (checkpoint-100), or a model.
    """
    for name, origin in _OTHERS.items():
        if (folder / name).is_file():
            return f" {name} belongs to {origin}."
    if found := adapters_below(folder):
        return found
    return " It contains a complete model." if (folder / MODEL_CONFIG).is_file() else ""


def adapters_below(folder: Path) -> str:
    """Return a sentence that names the adapters one level below a folder, such as checkpoint-100; "" without any."""
    found = sorted(file.parent for file in folder.glob(f"*/{ADAPTER_CONFIG}"))
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return f" Adapters are in {', '.join(map(str, found[:_SHOWN]))}{more}." if found else ""


def adapter_as_model(folder: Path) -> str:
    """Return a message if a folder that was given as a model is an adapter; else ""."""
    if not (folder / ADAPTER_CONFIG).is_file():
        return ""
    try:
        described = parse_json((folder / ADAPTER_CONFIG).read_bytes())
        base = described.get("base") or described.get("base_model_name_or_path")
    except (ValueError, AttributeError, OSError):
        base = None
    return (
        f"{folder} is an adapter, not a model. Give its base model ({base or 'not named in ' + ADAPTER_CONFIG}) as "
        f"--model_name_or_path, and the adapter as --lora_path {folder}."
    )
