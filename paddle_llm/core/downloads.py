"""Recognises downloads that cannot be read as they are: a git-lfs pointer or an HTML page under the name of the real file, and
folders that hold a model in another layout."""

from __future__ import annotations

from pathlib import Path

from paddle_llm.core.artifacts import MODEL_CONFIG, TOKENIZER_CONFIG

_POINTER = b"version https://git-lfs.github.com/spec/"
_PAGES = (b"<!doctype html", b"<html")
HEAD_BYTES = 64


def failed_download(head: bytes, pages: bool = True) -> str | None:
    """What a file holds in place of its content, and the remedy; None for every other file.

    Args:
        head: The first bytes of the file, at least `HEAD_BYTES` if it has so many.
        pages: Whether to recognise HTML pages, too. A corpus may hold them on purpose.
    """
    start = head[:HEAD_BYTES].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith(_POINTER):
        return "holds a git-lfs pointer, not the file itself. Run `git lfs pull` in its folder, or download the file"
    if pages and start.startswith(_PAGES):
        return "holds an HTML page, not the file itself. Download the file again"
    return None


def other_layout(folder: Path) -> str:
    """A sentence, with a blank in front, on what a folder without config.json or tokenizer holds in their place; "" if that is not known."""
    try:
        below = sorted(one for one in [*folder.glob("snapshots/*"), *folder.glob("*")] if one.is_dir())
        for one in below:
            if (one / MODEL_CONFIG).is_file() or (one / TOKENIZER_CONFIG).is_file():
                cache = (
                    "It is a download cache" if one.parent.name == "snapshots" else "The files are one folder further"
                )
                return f" {cache}: give {one}."
        if any(folder.glob("consolidated.*.pth")):
            return " It holds Meta's own format (consolidated.*.pth). Convert it with transformers, or fetch the Hugging Face folder."
        if any(folder.glob("*.gguf")):
            return " It holds GGUF files, which are not read. Fetch the folder that they were made from."
    except OSError:
        pass
    return ""
