"""Write the corpus of the quickstart: English prose of the Python installation (language reference and docstrings)."""

from __future__ import annotations

import ast
import json
import re
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics

SKIPPED_PARTS = {"site-packages", "test", "tests", "idlelib", "lib2to3", "turtledemo"}


def documents() -> Iterator[str]:
    """Yield one document per topic of the language reference, then one per module with its docstrings."""
    for name in sorted(topics):
        yield " ".join(paragraphs(topics[name]))
    library = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(library.rglob("*.py")):
        if SKIPPED_PARTS.isdisjoint(path.relative_to(library).parts):
            yield " ".join(paragraph for text in _docstrings(path) for paragraph in paragraphs(text))


def paragraphs(text: str) -> Iterator[str]:
    """Yield the paragraphs that are sentences, without examples, tables and grammar, of which a small model learns nothing."""
    for lines in re.split(r"\n\s*\n", text):
        paragraph = " ".join(lines.split())
        letters = sum(character.isalpha() or character == " " for character in paragraph)
        plain = letters + sum(paragraph.count(character) for character in ".,;:!?'\"`*()-")
        is_prose = letters >= 0.9 * len(paragraph) and plain >= 0.96 * len(paragraph)
        if is_prose and ">>>" not in paragraph and len(re.findall(r"[A-Za-z]{2,}", paragraph)) >= 6:
            yield paragraph


def _docstrings(path: Path) -> Iterator[str]:
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError):
        return
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            text = ast.get_docstring(node)
            if text:
                yield text


def main(target: Path) -> None:
    """Write the documents as jsonl."""
    target.parent.mkdir(parents=True, exist_ok=True)
    written = 0
    with target.open("w", encoding="utf-8") as file:
        for text in documents():
            if len(text) > 200:
                file.write(json.dumps({"text": text}) + "\n")
                written += 1
    print(f"{target}: {written} documents, {target.stat().st_size / 1e6:.1f} MB", file=sys.stderr)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
