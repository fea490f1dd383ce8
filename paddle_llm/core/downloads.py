"""Recognises files whose download went wrong: a git-lfs pointer or an HTML page under the name of the real file."""

from __future__ import annotations

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
