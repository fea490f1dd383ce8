"""Sphinx extension: beside every HTML page its Markdown source, and `llms.txt`, a list of all pages with their first sentence.

The pages of this site are plain Markdown apart from MyST directives such as `{toctree}`. The front page's tables of contents
become lists of links, so that every page can be reached by a reader of the Markdown.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

TOCTREE = re.compile(r"^```\{toctree\}\n(.*?)^```\n", re.MULTILINE | re.DOTALL)
_BLOCK = re.compile(r"^(#|\||```|<!--|:::|[-*] |\d+\. |    |!\[)")


def title_of(text: str) -> str:
    """Return the first heading of a page, without marks of code.

    Raises:
        ValueError: If the page has no heading.
    """
    found = re.search(r"^# (.+)$", text, re.MULTILINE)
    if found is None:
        raise ValueError("a page without a heading")
    return found[1].replace("`", "").strip()


def first_sentence(text: str) -> str:
    """Return the first sentence of the first paragraph of a page; "" if it has only tables, lists and code."""
    without_code = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    for block in re.split(r"\n\s*\n", without_code):
        if block.strip() and not _BLOCK.match(block):
            paragraph = re.sub(r"\[([^\]]+)\]\([^)]*\)", r"\1", " ".join(block.split()))
            return re.split(r"(?<=[.:!?])(?: (?=[A-Z`])|$)", paragraph)[0]
    return ""


def entries(toctree: str) -> list[str]:
    """Return the names of the pages in the body of a `{toctree}` directive."""
    return [line.strip() for line in toctree.splitlines() if line.strip() and not line.startswith(":")]


def write_pages(source: Path, output: Path, names: Iterable[str]) -> None:
    """Write the Markdown pages and `llms.txt`.

    Args:
        source: Folder with the sources.
        output: Folder of the site.
        names: Names of all pages without suffix, like "reference/metrics".

    Raises:
        ValueError: If a page has no heading, or is in no table of contents of the front page.
    """
    texts = {name: (source / f"{name}.md").read_text(encoding="utf-8") for name in names}
    titles = {name: title_of(text) for name, text in texts.items()}
    index = texts["index"]
    listed = [name for body in TOCTREE.findall(index) for name in entries(body)]
    missing = sorted(set(texts) - {"index", *listed})
    if missing:
        raise ValueError(f"pages that are in no table of contents of index.md: {', '.join(missing)}")

    def links(body: re.Match[str]) -> str:
        return "".join(f"- [{titles[name]}]({name}.md)\n" for name in entries(body[1]))

    summary = [f"# {titles['index']}\n\n> {first_sentence(index)}\n"]
    for section in re.split(r"^## ", index, flags=re.MULTILINE)[1:]:
        names_of_section = [name for body in TOCTREE.findall(section) for name in entries(body)]
        lines = [
            f"- [{titles[name]}]({name}.md): {first_sentence(texts[name])}".rstrip(": ") for name in names_of_section
        ]
        if lines:
            summary.append("\n".join([f"## {section.splitlines()[0]}\n", *lines, ""]))
    for name, text in texts.items():
        page = output / f"{name}.md"
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(TOCTREE.sub(links, text), encoding="utf-8")
    for image in source.glob("*.png"):
        shutil.copy2(image, output)
    (output / "llms.txt").write_text("\n".join(summary), encoding="utf-8")


def _write_after_build(app: Any, error: Exception | None) -> None:
    if error is None and app.builder.name == "html":
        write_pages(Path(app.srcdir), Path(app.outdir), sorted(app.env.found_docs))


def setup(app: Any) -> dict[str, bool]:
    """Register the extension."""
    app.connect("build-finished", _write_after_build)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
