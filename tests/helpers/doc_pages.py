"""Reads the blocks of a page of docs/ and their marks.

A mark is an HTML comment in the line before a block:

    <!-- not run: REASON -->      its commands cannot run here; REASON begins with an entry of REASONS
    <!-- run by tests/FILE.py --> another test runs them
    <!-- slow -->                 they run in the slow suite only
    <!-- exit code: N -->         its last command ends with this code; without the mark, every command ends with 0
    <!-- file: examples/NAME -->  the block is the content of that file, which the reader saves as NAME
    <!-- part -->                 Python that is only parsed, because it is a part of a file
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
# Beginnings of the reasons for which a block may not run.
REASONS = (
    "needs GPUs",
    "needs several machines",
    "needs Slurm",
    "needs Kubernetes",
    "needs the internet",
    "takes an hour",
    "for maintainers",
)
LANGUAGES = ("console", "text", "python", "json", "jinja", "{toctree}", "{eval-rst}")
_FENCE = re.compile(r"((?:^<!-- [^\n]* -->\n)*)^```([^\n]*)\n(.*?)^```$", re.M | re.S)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    Attributes:
        language: Word after the fence.
        text: Content.
        marks: Marks before it, by their first words.
    """

    language: str
    text: str
    marks: dict[str, str]

    @property
    def commands(self) -> list[str]:
        """The lines that begin with `$`, without it."""
        return [line[2:] for line in self.text.splitlines() if line.startswith("$ ")]

    @property
    def runs(self) -> bool:
        """Whether the commands of the block run as part of their page."""
        return bool(self.commands) and not {"not run", "run by"} & self.marks.keys()


def blocks(page: Path) -> list[Block]:
    """Return the fenced blocks of a page in order."""
    found = _FENCE.findall(page.read_text(encoding="utf-8"))
    return [Block(language.strip(), text, _marks(comments)) for comments, language, text in found]


def _marks(comments: str) -> dict[str, str]:
    marks = {}
    for comment in re.findall(r"<!-- (.*?) -->", comments):
        known = re.fullmatch(r"(not run|run by|exit code|file|slow|part):? ?(.*)", comment)
        if known is not None:
            marks[known[1]] = known[2]
    return marks


def commands(page: str | Path) -> list[str]:
    """Return all commands of a page, given by its path or by a name like "how-to/export"."""
    path = page if isinstance(page, Path) else DOCS / f"{page}.md"
    return [command for block in blocks(path) for command in block.commands]


def without_blocks(text: str) -> str:
    """Return the text of a page without its fenced blocks."""
    return _FENCE.sub("", text)


def name_of(page: Path) -> str:
    """Return the name of a page, like "how-to/export"."""
    return page.relative_to(DOCS).with_suffix("").as_posix()


def all_pages() -> list[Path]:
    """Return all pages of the documentation."""
    return sorted(path for path in DOCS.rglob("*.md") if "_build" not in path.parts)
