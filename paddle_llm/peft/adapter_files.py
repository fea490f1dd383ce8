"""The files of an adapter folder: `adapter_config.json`, in this library's format or PEFT's, and the tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from paddle_llm.core.artifacts import ADAPTER_CONFIG
from paddle_llm.core.errors import UserError
from paddle_llm.core.json_files import read_json_object


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """Read adapter_config.json, in this library's format or PEFT's.

    Raises:
        UserError: If the file does not exist or is not a JSON object.
    """
    file = folder / ADAPTER_CONFIG
    if not file.is_file():
        raise UserError(f"{folder} is not an adapter: it has no {ADAPTER_CONFIG}. Give an adapter folder.")
    return read_json_object(file)
