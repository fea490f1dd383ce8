"""Sphinx extension: beside every HTML page its Markdown source, and `llms.txt`, a list of all pages with their first sentence.

The pages of this site are plain Markdown apart from MyST directives. The front page's tables of contents become lists of
links, so that every page can be reached by a reader of the Markdown. The directives of autodoc become signatures and
docstrings. Files of the repository outside of docs/ that a page links to are copied.
"""

from __future__ import annotations

import inspect
import os
import re
import shutil
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

TOCTREE = re.compile(r"^```\{toctree\}\n(.*?)^```\n", re.MULTILINE | re.DOTALL)
_REPOSITORY_FILES = "_files"  # folder of the site with copies of files outside of docs/
_AUTODOC = re.compile(r"^```\{eval-rst\}\n(.*?)^```\n", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\((\.\.?/[^)#\s]+)\)")
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


def documented(directives: str) -> str:
    """Return the Markdown for the body of an `{eval-rst}` directive with autodoc's directives."""
    parts = []
    pattern = r"^\.\. auto(?:function|class):: (\S+)$(?:\n +:members: (.+)$)?"
    for name, members in re.findall(pattern, directives, flags=re.MULTILINE):
        module, _, attribute = name.rpartition(".")
        value = getattr(import_module(module), attribute)
        parts.append(_described(name, value))
        parts += [_described(f"{attribute}.{one}", getattr(value, one)) for one in members.split(", ") if one]
    return "\n".join(parts)


def _described(name: str, value: Any) -> str:
    # Annotations are texts, since the modules import them for type checkers only.
    signature = re.sub(r"(: |-> )'([^']+)'", r"\1\2", str(inspect.signature(value)))
    return f"### {name}\n\n```text\n{name}{signature}\n```\n\n```text\n{inspect.getdoc(value)}\n```\n"


def outside_links(text: str, page: Path, source: Path) -> dict[str, Path]:
    """Return the files outside of the sources that a page links to, by the link."""
    targets = {link: (page.parent / link).resolve() for link in _LINK.findall(text)}
    return {link: file for link, file in targets.items() if file.is_file() and not file.is_relative_to(source)}


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
        text = TOCTREE.sub(links, text)
        text = _AUTODOC.sub(lambda body: documented(body[1]), text)
        for link, file in outside_links(text, source.resolve() / f"{name}.md", source.resolve()).items():
            copy = output / _REPOSITORY_FILES / file.relative_to(source.resolve().parent)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(file, copy)
            text = text.replace(f"]({link})", f"]({os.path.relpath(copy, page.parent)})")
        page.write_text(text, encoding="utf-8")
    for image in (*source.glob("*.png"), *source.glob("*.svg")):
        shutil.copy2(image, output)
    (output / "llms.txt").write_text("\n".join(summary), encoding="utf-8")


def _write_after_build(app: Any, error: Exception | None) -> None:
    if error is None and app.builder.name == "html":
        write_pages(Path(app.srcdir), Path(app.outdir), sorted(app.env.found_docs))


def _link_copies(app: Any, name: str, content: list[str]) -> None:
    """Make links to files outside of docs/ downloads; MyST looks for a page otherwise."""
    source = Path(app.srcdir).resolve()
    for link in outside_links(content[0], source / f"{name}.md", source):
        content[0] = content[0].replace(f"]({link})", f"](path:{link})")


def setup(app: Any) -> dict[str, bool]:
    """Register the extension."""
    app.connect("source-read", _link_copies)
    app.connect("build-finished", _write_after_build)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
