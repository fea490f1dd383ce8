"""Text that can be encoded: every character is a Unicode scalar value."""

from __future__ import annotations

from paddle_llm.core.errors import UserError


class NotText(UserError):
    """A string with a lone surrogate, which no encoding of Unicode and no tokenizer can represent.

    JSON can write one (`"\\ud83d"`), and so can a command line with bytes that are not UTF-8. Readers of files turn this error
    into a bad row with file and line.
    """


def require_text(text: str) -> str:
    """The text itself.

    Raises:
        NotText: If it holds a lone surrogate.
    """
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            code = ord(text[error.start])
            raise NotText(
                f"not text: lone surrogate U+{code:04X} at character {error.start + 1}. Write the whole character, or remove it."
            ) from error
    return text
