"""Reading of JSON files that users or other programs wrote. A file that cannot be read is one UserError."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from paddle_llm.core.downloads import failed_download
from paddle_llm.core.errors import UserError


def parse_json(text: str | bytes, **options: Any) -> Any:
    """Parse JSON.

    Args:
        text: JSON; bytes in UTF-8, UTF-16 or UTF-32.
        **options: Arguments of `json.loads`.

    Raises:
        json.JSONDecodeError: If the text is not JSON, is nested too deeply, or contains a number with too many digits.
        UnicodeDecodeError: If bytes are not text.
    """
    try:
        return json.loads(text, **options)
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise
    except RecursionError:
        raise json.JSONDecodeError("nested too deeply", "", 0) from None
    except ValueError as error:
        if "integer string conversion" not in str(error):
            raise  # from a hook of the caller
        raise json.JSONDecodeError("a number with too many digits", "", 0) from None


def read_json_object(file: Path) -> dict[str, Any]:
    """Read a JSON file that must contain an object.

    Raises:
        UserError: If the file cannot be read, is not JSON (the message has line and column), or contains another type.
    """
    try:
        content = parse_json(file.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        if problem := failed_download(file.read_bytes()):
            raise UserError(f"{file}: {problem}.") from None
        where = f"line {error.lineno}, column {error.colno}"
        raise UserError(f"{file} is not valid JSON: {where}: {error.msg}. Correct the file.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read: {error}. Check the file and its permissions.") from None
    if not isinstance(content, dict):
        raise UserError(f"{file} must contain a JSON object, not a {type(content).__name__}. Correct the file.")
    return content
