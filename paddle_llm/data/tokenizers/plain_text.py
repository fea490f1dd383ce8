"""Checks that text can be encoded: every character must be a Unicode scalar value."""

from __future__ import annotations

from paddle_llm.core.errors import UserError


class NotText(UserError):
    r"""A string contains a lone surrogate, which no Unicode encoding and no tokenizer can represent.

    JSON can contain one (`"\ud83d"`), and so can a command line with bytes that are not UTF-8. File readers turn this
    error into a bad row with file and line.
    """


def require_text(text: str) -> str:
    """Return the text unchanged.

    Raises:
        NotText: If it contains a lone surrogate.
    """
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            code = ord(text[error.start])
            raise NotText(
                f"not text: lone surrogate U+{code:04X} at character {error.start + 1}. Write the complete character, or remove it."
            ) from error
    return text
