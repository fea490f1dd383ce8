"""Recognise failed downloads: a git-lfs pointer or an HTML page instead of a file, and models in an unsupported folder layout."""

from __future__ import annotations

from pathlib import Path

from paddle_llm.core.artifacts import MODEL_CONFIG, MODEL_FOLDER, TOKENIZER_CONFIG

_POINTER = b"version https://git-lfs.github.com/spec/"
_PAGES = (b"<!doctype html", b"<html")
HEAD_BYTES = 64


def failed_download(head: bytes, pages: bool = True) -> str | None:
    """Describe a failed download.

    Args:
        head: First bytes of the file, at least `HEAD_BYTES` of them if the file is that long.
        pages: Whether to recognise HTML pages. A corpus may contain them on purpose.

    Returns:
        Problem and remedy, without a final period; None for every other file.
    """
    start = head[:HEAD_BYTES].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith(_POINTER):
        return "is a git-lfs pointer, not the file itself. Run `git lfs pull` in its folder, or download the file"
    if pages and start.startswith(_PAGES):
        return "is an HTML page, not the file itself. Download the file again"
    return None


def describe_other_layout(folder: Path) -> str:
    """Describe a folder that has neither a config.json nor a tokenizer.

    Returns:
        Sentence that begins with a space; "" if the content is not recognised.
    """
    try:
        candidates = [*folder.glob("snapshots/*"), *folder.glob("*")]
        folders = [candidate for candidate in candidates if candidate.is_dir()]
        for one in sorted(folders, key=lambda folder: (folder.name != MODEL_FOLDER, folder)):
            if (one / MODEL_CONFIG).is_file() or (one / TOKENIZER_CONFIG).is_file():
                is_cache = one.parent.name == "snapshots"
                return f" {'It is a download cache' if is_cache else 'The files are in a subfolder'}. Give {one}."
        if any(folder.glob("consolidated.*.pth")):
            return " It is in Meta's format (consolidated.*.pth). Convert it with transformers, or download the Hugging Face folder."
        if any(folder.glob("*.gguf")):
            return " It contains GGUF files, which can be exported but not read. Download the original folder."
    except OSError:
        pass
    return ""
