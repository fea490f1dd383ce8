"""A JSON file that must hold an object, read with one clear message for each way in which it may not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from paddle_llm.core import json_text
from paddle_llm.core.downloads import failed_download
from paddle_llm.core.errors import UserError


def read_json_object(file: Path) -> dict[str, Any]:
    """The object.

    Raises:
        UserError: the file cannot be read, or holds none; of what is no JSON with line and column.
    """
    try:
        found = json_text.loads(file.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        if problem := failed_download(file.read_bytes()):
            raise UserError(f"{file}: {problem}.") from None
        raise UserError(f"{file} is not valid JSON: line {error.lineno}, column {error.colno}: {error.msg}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read: {error}") from None
    if not isinstance(found, dict):
        raise UserError(f"{file} must hold a JSON object, not a {type(found).__name__}")
    return found
