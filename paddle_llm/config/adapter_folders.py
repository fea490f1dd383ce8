"""Finds adapters by their `adapter_config.json`, for messages about folders that were given in the wrong place."""

from __future__ import annotations

import json
from pathlib import Path

CONFIG = "adapter_config.json"
_SHOWN = 3


def adapters_below(folder: Path) -> str:
    """A sentence that names the adapters one level below a folder, such as checkpoint-100; empty without any."""
    found = sorted(file.parent for file in folder.glob(f"*/{CONFIG}"))
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return f" Adapters are in {', '.join(map(str, found[:_SHOWN]))}{more}." if found else ""


def instead_of_model(folder: Path) -> str:
    """What to give if a model is asked for and the folder is an adapter; empty if it is not an adapter."""
    if not (folder / CONFIG).is_file():
        return ""
    try:
        described = json.loads((folder / CONFIG).read_bytes())
        base = described.get("base") or described.get("base_model_name_or_path")
    except (ValueError, AttributeError, RecursionError, OSError):
        base = None
    return (
        f"{folder} is an adapter, not a model. Give the model that it was trained over ({base or 'not named in ' + CONFIG}) as "
        f"--model_name_or_path, and the adapter as --lora_path {folder}."
    )
