"""Expansion of `~` and environment variables in all paths that users write."""

from __future__ import annotations

import os
import re

# $$ is a dollar sign. ${...} is matched completely, so that shell expressions are refused instead of used literally.
_DOLLAR = re.compile(r"\$(?:\$|([A-Za-z_][A-Za-z0-9_]*)|\{([^}]*)\}|(\())")
_MAX_NAME_BYTES = 255  # of one file or folder name, on every common file system
# Texts that are not paths, and would otherwise become names of folders.
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_WINDOWS_VARIABLE = re.compile(r"(?:^|[/\\])(%[A-Za-z_][A-Za-z0-9_]*%)(?=[/\\]|$)")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class PathError(ValueError):
    """Raised if a path cannot be expanded. The message is the reason and the remedy, without a final period."""


def expand_path(text: str) -> str:
    """Replace `$NAME` and `${NAME}`, then a leading `~` or `~user`; `$$` becomes `$`.

    Args:
        text: Path as written. A text without `$` and a leading `~` is returned unchanged.

    Raises:
        PathError: If a variable is not defined or empty, a user is unknown, the text is a shell expression, a URL or a
            Windows variable, or it contains a NUL character or a lone surrogate.
    """
    if "\0" in text or not _is_utf8(text):
        raise PathError("the path contains an invalid character. Write the path again")
    if text and not text.strip():
        raise PathError("the path is blank. Write a path, or drop it")
    if url := _URL.match(text):
        raise PathError(f"{url[0]} begins a URL, but only local files are supported. Write a local path")
    if windows := _WINDOWS_VARIABLE.search(text):
        raise PathError(f"{windows[1]} is a variable on Windows only. Write $NAME, or the full path")
    expanded = _DOLLAR.sub(_value, text)
    if any(len(part.encode("utf-8", "surrogateescape")) > _MAX_NAME_BYTES for part in expanded.split("/")):
        raise PathError(f"a file name has more than {_MAX_NAME_BYTES} bytes. Write a shorter one")
    if not expanded.startswith("~"):
        return expanded
    home = os.path.expanduser(expanded)
    if home.startswith("~") and not os.path.lexists(home):
        raise PathError(f"the user {home.split('/')[0][1:]} is unknown. Write the full path")
    return home


def expand_blend(text: str) -> str:
    """Expand every path of `"0.3 PATH 0.7 PATH"`; text that is not a blend is one path.

    Raises:
        PathError: If `expand_path` raises it, or a path of a blend contains a space after the expansion.
    """
    words = text.split()
    if len(words) < 2 or len(words) % 2 or not all(map(_is_weight, words[::2])):
        return expand_path(text)
    paths = [expand_path(word) for word in words[1::2]]
    for written, path in zip(words[1::2], paths, strict=True):
        if len(path.split()) != 1:
            raise PathError(f"{written} becomes {path}, but a path of a blend cannot contain a space. Use a link to it")
    return " ".join(part for pair in zip(words[::2], paths, strict=True) for part in pair)


def _value(match: re.Match[str]) -> str:
    if match[0] == "$$":
        return "$"
    if match[3]:
        raise PathError("$(...) is a shell expression. Write its result")
    name = match[1] or match[2]
    if not _NAME.fullmatch(name):
        raise PathError(f"{match[0]} is a shell expression. Write $NAME or ${{NAME}}")
    value = os.environ.get(name)
    if value is None:
        raise PathError(f"the environment variable {name} is not defined. Export it, or write the full path")
    if not value:
        raise PathError(f"the environment variable {name} is empty. Set it, or write the full path")
    return value


def _is_utf8(text: str) -> bool:
    """Return whether the system accepts a path; `surrogateescape` marks bytes of a name in another encoding."""
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return True


def _is_weight(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True
