"""Paths as a user writes them: `~` and variables of the environment are replaced, once and everywhere alike."""

from __future__ import annotations

import os
import re

# $$ is a dollar sign. ${...} is matched whole, so that what a shell alone understands is refused and not taken literally.
_DOLLAR = re.compile(r"\$(?:\$|([A-Za-z_][A-Za-z0-9_]*)|\{([^}]*)\}|(\())")
_LONGEST = 255  # of one file or folder, on every common file system
# What is no path here, and would become the name of a folder.
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_OF_WINDOWS = re.compile(r"(?:^|[/\\])(%[A-Za-z_][A-Za-z0-9_]*%)(?=[/\\]|$)")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class PathError(ValueError):
    """A path that cannot be expanded. The message names the variable or the user, and the remedy."""


def expand_path(text: str) -> str:
    """Replace `$NAME` and `${NAME}`, then a leading `~` or `~user`; `$$` becomes `$`.

    Args:
        text: one path as written. Text without `$` and a leading `~` is returned unchanged.

    Raises:
        PathError: If a variable is not defined or empty, a user is unknown, the text is a shell expression, an address or a
            variable of Windows, or it contains a NUL character or a lone surrogate.
    """
    if "\0" in text or not _is_utf8(text):
        raise PathError("no path contains such a character. Write the path again")
    if text and not text.strip():
        raise PathError("a path of blanks. Write a path, or leave it out")
    if address := _ADDRESS.match(text):
        raise PathError(
            f"{address[0]} begins an address, and only local files are read and written. Write a local path"
        )
    if windows := _OF_WINDOWS.search(text):
        raise PathError(f"{windows[1]} is a variable on Windows only. Write $NAME, or the path in full")
    expanded = _DOLLAR.sub(_value, text)
    if any(len(part.encode("utf-8", "surrogateescape")) > _LONGEST for part in expanded.split("/")):
        raise PathError(f"a name of more than {_LONGEST} bytes, which no file can have. Write a shorter one")
    if not expanded.startswith("~"):
        return expanded
    home = os.path.expanduser(expanded)
    if home.startswith("~") and not os.path.lexists(home):
        raise PathError(f"the user {home.split('/')[0][1:]} is unknown. Write the path in full")
    return home


def expand_blend(text: str) -> str:
    """Expand every path of `"0.3 PATH 0.7 PATH"`; text that is not a blend is one path.

    Raises:
        PathError: As `expand_path` does; if a path of a blend contains a space after the expansion.
    """
    words = text.split()
    if len(words) < 2 or len(words) % 2 or not all(map(_is_weight, words[::2])):
        return expand_path(text)
    paths = [expand_path(word) for word in words[1::2]]
    for written, path in zip(words[1::2], paths, strict=True):
        if len(path.split()) != 1:
            raise PathError(f"{written} becomes {path}, and a path of a blend cannot contain a space. Use a link to it")
    return " ".join(part for pair in zip(words[::2], paths, strict=True) for part in pair)


def _value(match: re.Match[str]) -> str:
    if match[0] == "$$":
        return "$"
    if match[3]:
        raise PathError("$(...) is run by a shell only. Write its result")
    name = match[1] or match[2]
    if not _NAME.fullmatch(name):
        raise PathError(f"{match[0]} is understood by a shell only. Write $NAME or ${{NAME}}")
    value = os.environ.get(name)
    if value is None:
        raise PathError(f"the environment variable {name} is not defined. Export it, or write the path in full")
    if not value:
        raise PathError(f"the environment variable {name} is empty. Set it, or write the path in full")
    return value


def _is_utf8(text: str) -> bool:
    """Whether a path can be given to the system; `surrogateescape` marks bytes of a name in another encoding."""
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
