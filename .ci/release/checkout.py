"""Checks of a release that read the checkout: git, version numbers, changelog, built documentation."""

from __future__ import annotations

import datetime
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import yaml

# Files that repeat the version of paddle_llm/__init__.py -> pattern of the line.
VERSIONS = {
    "CITATION.cff": r"^version: (\S+)$",
    "custom_ops/setup.py": r"^setup\(.*\bversion=\"([^\"]+)\"",
}
KINDS = ("Added", "Changed", "Deprecated", "Removed", "Fixed", "Security")
_RELEASE = re.compile(r"\d+\.\d+\.\d+")
_HEADING = re.compile(r"## \[([^\]]+)\](?: - (\S+))?")


def version_of(root: Path) -> str:
    """Return `paddle_llm.__version__` without importing the package."""
    text = (root / "paddle_llm" / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r"^__version__ = \"([^\"]+)\"$", text, re.MULTILINE)
    return found[1] if found else ""


def _git(root: Path, *words: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def git_problems(root: Path, version: str) -> Iterator[str]:
    """Yield problems of the working tree: changes without a commit, and a version that is released already."""
    changed = _git(root, "status", "--porcelain").splitlines()
    if changed:
        yield (
            f"{len(changed)} files are not committed, such as {changed[0][2:].strip()}. The packages would contain or lack them. "
            "Commit or remove them."
        )
    tagged = _git(root, "rev-parse", "--quiet", "--verify", f"refs/tags/v{version}^{{commit}}")
    if tagged and tagged != _git(root, "rev-parse", "HEAD"):
        yield f"version {version} has the tag v{version} at another commit, {tagged[:12]}. Raise the version."


def version_problems(root: Path) -> Iterator[str]:
    """Yield problems of the version numbers."""
    version = version_of(root)
    if not _RELEASE.fullmatch(version):
        yield f"paddle_llm/__init__.py: __version__ is {version!r}, not three numbers such as 1.2.3."
    for name, pattern in VERSIONS.items():
        found = re.search(pattern, (root / name).read_text(encoding="utf-8"), re.MULTILINE)
        if found is None:
            yield f"{name}: no line with the version. Add {version}."
        elif found[1] != version:
            yield f"{name}: the version is {found[1]}, that of paddle_llm/__init__.py is {version}."


@dataclass
class Section:
    """One version of the changelog.

    Attributes:
        name: Version, or "Unreleased".
        date: Date as written; None if the heading has none.
        entries: Number of entries below each heading of a kind; "" for entries above the first heading.
        first: First line of text.
        repeated: Headings that occur twice, as after a merge that kept both versions.
    """

    name: str
    date: str | None
    entries: dict[str, int] = field(default_factory=dict)
    first: str = ""
    repeated: list[str] = field(default_factory=list)


def _sections(text: str) -> list[Section]:
    sections: list[Section] = []
    kind = ""
    for line in text.splitlines():
        if line.startswith("## "):
            found = _HEADING.fullmatch(line.rstrip())
            sections.append(Section(found[1], found[2]) if found else Section(line[3:], None))
            kind = ""
        elif sections and line.startswith("### "):
            kind = line[4:].strip()
            if kind in sections[-1].entries:
                sections[-1].repeated.append(kind)
            sections[-1].entries.setdefault(kind, 0)
        elif sections and line.strip() and not line.startswith("#"):
            sections[-1].first = sections[-1].first or line.strip()
            if line.startswith(("- ", "* ")):
                sections[-1].entries[kind] = sections[-1].entries.get(kind, 0) + 1
    return sections


def changelog_problems(root: Path, version: str) -> Iterator[str]:
    """Yield problems of CHANGELOG.md: the version's section is closed, complete and the newest, and nothing is unreleased."""
    sections = _sections((root / "CHANGELOG.md").read_text(encoding="utf-8"))
    names = [section.name for section in sections]
    if not names or names[0] != "Unreleased":
        yield 'CHANGELOG.md: the first section is not "## [Unreleased]".'
    elif sections[0].first:
        yield (
            f"CHANGELOG.md: Unreleased is not empty ({sum(sections[0].entries.values())} entries; {sections[0].first[:60]!r}), and the "
            f"packages of {version} would contain these changes. Move them to {version}, or raise the version."
        )
    released = [section for section in sections if section.name != "Unreleased"]
    if version not in names:
        yield f'CHANGELOG.md: no section "## [{version}] - DATE".'
    elif released[0].name != version:
        yield f"CHANGELOG.md: the newest section is {released[0].name}, not {version}."
    if len(set(names)) < len(names):
        yield "CHANGELOG.md: two sections have the same name."
    for section in sections:
        for kind in section.repeated:
            yield f"CHANGELOG.md: {section.name} has the heading {kind} twice. Merge the two."
    for section in released:
        yield from _section_problems(section)
    if sections and version in names:
        yield from _date_problems(root, sections[names.index(version)])


def _section_problems(section: Section) -> Iterator[str]:
    if not _RELEASE.fullmatch(section.name):
        yield f"CHANGELOG.md: {section.name!r} is not a version such as 1.2.3."
    if not _is_date(section.date):
        yield f"CHANGELOG.md: the date of {section.name} is {section.date}, not a day such as 2026-11-30."
    if not section.entries:
        yield f"CHANGELOG.md: {section.name} has no entries."
    for kind, count in section.entries.items():
        if kind not in KINDS:
            yield f"CHANGELOG.md: {section.name} has entries under {kind!r}. Use {', '.join(KINDS)}."
        elif not count:
            yield f"CHANGELOG.md: {kind} of {section.name} has no entries."


def _date_problems(root: Path, section: Section) -> Iterator[str]:
    cited = str(yaml.safe_load((root / "CITATION.cff").read_text(encoding="utf-8")).get("date-released"))
    if cited != section.date:
        yield f"CITATION.cff: date-released is {cited}, the date of {section.name} in CHANGELOG.md is {section.date}."


def _is_date(text: str | None) -> bool:
    try:
        return text is not None and datetime.date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False


def docs_problems(root: Path, version: str) -> Iterator[str]:
    """Yield problems of the documentation that `make docs` has built."""
    built = root / "docs" / "_build" / "html"
    front = built / "index.html"
    if not front.is_file():
        yield f"{front.relative_to(root)} does not exist. Run make docs."
        return
    if f"paddle_llm {version}" not in front.read_text(encoding="utf-8"):
        yield f"docs/_build/html is not the documentation of {version}. Run make docs."
    index = (built / "llms.txt").read_text(encoding="utf-8") if (built / "llms.txt").is_file() else ""
    for page in sorted((root / "docs").rglob("*.md")):
        name = page.relative_to(root / "docs").with_suffix("")
        if name.parts[0] == "_build":
            continue
        missing = [suffix for suffix in (".html", ".md") if not built.joinpath(f"{name}{suffix}").is_file()]
        if missing or (name.name != "index" and f"({name}.md)" not in index):
            yield f"docs/{name}.md is not in the built documentation ({', '.join(missing) or 'llms.txt'}). Run make docs."
