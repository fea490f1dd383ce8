"""Parsing of JSON that other people wrote: every way in which it cannot be read is one kind of error."""

from __future__ import annotations

import json
from typing import Any


def loads(text: str | bytes, **options: Any) -> Any:
    """Parse JSON.

    Args:
        text: JSON; bytes in UTF-8, UTF-16 or UTF-32.
        options: Passed to `json.loads`.

    Raises:
        json.JSONDecodeError: If the text is not JSON, is nested too deeply, or holds a number with too many digits.
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
