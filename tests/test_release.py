"""`make release-check` before the builds: each kind of mistake is reported. Wheel and sdist: tests/test_wheel.py."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from docs._ext.plain_markdown import write_pages
from tests.helpers.release import ROOT, release_module

checkout = release_module("checkout")
CHANGELOG = """# Changelog

## [Unreleased]

## [1.2.0] - 2026-01-31

The third release.

### Added

#### Data
- More.

### Fixed
- A mistake.

## [1.1.0] - 2025-12-01

### Added
- Some.
"""
CITATION = "cff-version: 1.2.0\ntitle: x\nversion: 1.2.0\ndate-released: 2026-01-31\n"


@pytest.fixture
def tree(tmp_path):
    """A repository of which everything that the checks read is correct, committed."""
    for name in ("paddle_llm", "custom_ops", ".ci/release"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "paddle_llm/__init__.py").write_text('"""X."""\n\n__version__ = "1.2.0"\n')
    (tmp_path / "custom_ops/setup.py").write_text('setup(name="x", version="1.2.0")\n')
    (tmp_path / "CITATION.cff").write_text(CITATION)
    (tmp_path / "CHANGELOG.md").write_text(CHANGELOG)
    for script in (ROOT / ".ci/release").glob("*.py"):
        shutil.copy(script, tmp_path / ".ci/release")
    _git(tmp_path, "init", "--quiet")
    _commit(tmp_path)
    return tmp_path


def _git(folder: Path, *words: str) -> None:
    author = ["-c", "user.name=x", "-c", "user.email=x"]
    subprocess.run(["git", *author, "-C", str(folder), *words], check=True, capture_output=True)


def _commit(folder: Path) -> None:
    _git(folder, "add", "--all")
    _git(folder, "commit", "--quiet", "--message", "x", "--no-verify")


def _check(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-B", ".ci/release/check.py", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)


def _replace(name: str, old: str, new: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new, 1))

    return change


MISTAKES = {
    "no release number": (
        _replace("paddle_llm/__init__.py", "1.2.0", "1.2.0.dev0"),
        "__version__ is '1.2.0.dev0', not three numbers",
    ),
    "no version": (_replace("paddle_llm/__init__.py", "__version__", "version"), "__version__ is ''"),
    "version of the citation": (
        _replace("CITATION.cff", "version: 1.2.0\nd", "version: 1.1.0\nd"),
        "CITATION.cff: the version is 1.1.0, that of paddle_llm/__init__.py is 1.2.0",
    ),
    "version of the kernels": (_replace("custom_ops/setup.py", "1.2.0", "1.1.0"), "custom_ops/setup.py: the version"),
    "version is missing": (_replace("custom_ops/setup.py", "version", "v"), "custom_ops/setup.py: no line with"),
    "date of the citation": (_replace("CITATION.cff", "01-31", "01-30"), "date-released is 2026-01-30"),
    "no date in the citation": (_replace("CITATION.cff", "date-released: 2026-01-31", ""), "date-released is None"),
    "no Unreleased": (_replace("CHANGELOG.md", "## [Unreleased]\n", ""), 'first section is not "## [Unreleased]"'),
    "entries in Unreleased": (
        _replace("CHANGELOG.md", "## [Unreleased]\n", "## [Unreleased]\n\n### Added\n- New.\n- Newer.\n"),
        "Unreleased is not empty (2 entries; '- New.')",
    ),
    "text in Unreleased": (_replace("CHANGELOG.md", "released]\n", "released]\nSoon.\n"), "Unreleased is not empty"),
    "no section": (_replace("CHANGELOG.md", "[1.2.0]", "[1.2.1]"), 'no section "## [1.2.0] - DATE"'),
    "not the newest": (
        _replace("CHANGELOG.md", "## [1.2.0]", "## [1.3.0] - 2026-01-31\n### Added\n- X.\n\n## [1.2.0]"),
        "the newest section is 1.3.0, not 1.2.0",
    ),
    "no date": (_replace("CHANGELOG.md", "1.2.0] - 2026-01-31", "1.2.0]"), "the date of 1.2.0 is None"),
    "not a date": (_replace("CHANGELOG.md", "2026-01-31", "2026-02-31"), "the date of 1.2.0 is 2026-02-31, not a day"),
    "old section without a date": (_replace("CHANGELOG.md", " - 2025-12-01", ""), "the date of 1.1.0 is None"),
    "other form of a date": (_replace("CHANGELOG.md", "2026-01-31", "31.1.2026"), "the date of 1.2.0 is 31.1.2026"),
    "no entries": (
        _replace("CHANGELOG.md", "### Added\n- Some.\n", ""),
        "1.1.0 has no entries",
    ),
    "empty heading": (_replace("CHANGELOG.md", "- A mistake.\n", ""), "Fixed of 1.2.0 has no entries"),
    "unknown heading": (_replace("CHANGELOG.md", "### Fixed", "### Repaired"), "entries under 'Repaired'"),
    "entry without heading": (_replace("CHANGELOG.md", "The third release.", "- X."), "entries under ''"),
    "heading twice": (_replace("CHANGELOG.md", "### Fixed", "### Added"), "1.2.0 has the heading Added twice"),
    "heading twice in Unreleased": (
        _replace("CHANGELOG.md", "released]\n", "released]\n### Added\n- X.\n### Added\n- Y.\n"),
        "Unreleased has the heading Added twice",
    ),
    "twice": (_replace("CHANGELOG.md", "[1.1.0]", "[1.2.0]"), "two sections have the same name"),
    "not a version": (_replace("CHANGELOG.md", "## [1.1.0] - 2025-12-01", "## Older"), "'Older' is not a version"),
}


def test_a_correct_tree_passes(tree):
    done = _check(tree)
    assert (done.returncode, done.stdout) == (0, "release 1.2.0: version, changelog are correct\n"), done.stderr


@pytest.mark.parametrize(("change", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_reported(change, message, tree):
    change(tree)
    problems = [
        *checkout.version_problems(tree),
        *checkout.changelog_problems(tree, checkout.version_of(tree) or "1.2.0"),
    ]
    assert message in "\n".join(problems)


def test_all_problems_are_reported_together_with_exit_code_1(tree):
    MISTAKES["version of the kernels"][0](tree)
    MISTAKES["text in Unreleased"][0](tree)
    done = _check(tree)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("error: 3 problems with release 1.2.0\n  1. 2 files are not committed")
    assert "custom_ops/setup.py" in done.stderr and "Unreleased is not empty" in done.stderr


def test_a_version_that_is_tagged_at_another_commit(tree):
    _git(tree, "tag", "v1.2.0")
    assert _check(tree).returncode == 0
    (tree / "more").touch()
    _commit(tree)
    done = _check(tree)
    assert done.returncode == 1 and "version 1.2.0 has the tag v1.2.0 at another commit" in done.stderr


def test_missing_packages_and_documentation_are_reported(tree):
    (tree / "dist").mkdir()
    done = _check(tree, "--dist", "dist")
    assert done.returncode == 1
    assert all(text in done.stderr for text in ("*.whl", "*.tar.gz", "index.html does not exist")), done.stderr


def test_documentation(tree):
    docs, built = tree / "docs", tree / "docs/_build/html"
    built.mkdir(parents=True)
    (docs / "index.md").write_text("# X\n\nA page.\n\n## More\n\n```{toctree}\none\ntwo\n```\n")
    for name in ("one", "two"):
        (docs / f"{name}.md").write_text(f"# {name}\n\nA page.\n")
        (built / f"{name}.html").write_text("<title>x - paddle_llm 1.2.0 documentation</title>")
    (built / "index.html").write_text("<title>paddle_llm 1.2.0 documentation</title>")
    write_pages(docs, built, ["index", "one", "two"])
    assert list(checkout.docs_problems(tree, "1.2.0")) == []
    assert "not the documentation of 1.3.0" in "".join(checkout.docs_problems(tree, "1.3.0"))
    (built / "one.html").unlink()
    (docs / "new.md").write_text("# New\n")
    (built / "llms.txt").write_text((built / "llms.txt").read_text().replace("two.md", "three.md"))
    problems = "\n".join(checkout.docs_problems(tree, "1.2.0"))
    assert "docs/one.md is not in the built documentation (.html)" in problems
    assert "docs/new.md is not in the built documentation (.html, .md)" in problems
    assert "docs/two.md is not in the built documentation (llms.txt)" in problems


def test_the_versions_and_the_changelog_of_this_checkout():
    """What holds between releases as well: the version's section is closed, and only Unreleased may be above it."""
    version = checkout.version_of(ROOT)
    assert list(checkout.version_problems(ROOT)) == []
    problems = [text for text in checkout.changelog_problems(ROOT, version) if "Unreleased is not empty" not in text]
    assert problems == []
    assert re.fullmatch(r"\d+\.\d+\.\d+", version)
