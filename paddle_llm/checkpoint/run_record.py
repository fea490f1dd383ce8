"""Read the record that a run leaves beside its model, adapter and checkpoints: `config.resolved.json`."""

from __future__ import annotations

import json
from pathlib import Path

from paddle_llm.core.artifacts import RESOLVED_CONFIG


def recorded_argument(folder: Path, name: str) -> str | None:
    """Return an argument of the training that wrote a folder, from the config.resolved.json beside the folder.

    Args:
        folder: Model, adapter or checkpoint of a run.
        name: Name of the argument.

    Returns:
        Value of the argument; None if there is no record, or the value is not a string.
    """
    record = folder.resolve().parent / RESOLVED_CONFIG
    try:
        value = json.loads(record.read_text(encoding="utf-8"))["arguments"][name]["value"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return value if isinstance(value, str) else None
