"""Write the corpus of the quickstart: English text of the Python installation (language reference and docstrings)."""

from __future__ import annotations

import ast
import json
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics

SKIPPED_PARTS = {"site-packages", "test", "tests", "idlelib", "lib2to3", "turtledemo"}


def documents() -> Iterator[str]:
    """Yield the topics of the language reference, then one document per module with its docstrings."""
    yield from (topics[name] for name in sorted(topics))
    library = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(library.rglob("*.py")):
        if SKIPPED_PARTS.isdisjoint(path.relative_to(library).parts):
            text = "\n\n".join(_docstrings(path))
            if len(text) > 200:
                yield text


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
            file.write(json.dumps({"text": " ".join(text.split())}) + "\n")
            written += 1
    print(f"{target}: {written} documents, {target.stat().st_size / 1e6:.1f} MB", file=sys.stderr)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
