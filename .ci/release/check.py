"""Verify a release: `check.py` reads the checkout; `check.py --dist FOLDER` also the built packages and the documentation.

Every problem is printed on stderr, with exit code 1. `make release-check` runs both, with the builds between them.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from archives import rebuild_problems, sdist_problems, wheel_problems
from checkout import changelog_problems, docs_problems, git_problems, version_of, version_problems

ROOT = Path(__file__).resolve().parents[2]


def only_file(folder: Path, pattern: str) -> tuple[Path | None, list[str]]:
    """Return the only file with a pattern, or the problem."""
    found = sorted(folder.glob(pattern))
    if len(found) == 1:
        return found[0], []
    names = ", ".join(path.name for path in found) or "none"
    return None, [f"{folder} must have one file {pattern}, and has: {names}. Run make wheel."]


def dist_problems(root: Path, folder: Path) -> list[str]:
    """Return the problems of the built packages and of the built documentation."""
    version = version_of(root)
    wheel, problems = only_file(folder, "*.whl")
    sdist, further = only_file(folder, "*.tar.gz")
    problems += further
    if wheel is not None:
        problems += wheel_problems(root, wheel, version)
    if sdist is not None:
        problems += sdist_problems(root, sdist, version)
    if wheel is not None and sdist is not None and not problems:
        problems += rebuild_problems(sdist, wheel)
    return [*problems, *docs_problems(root, version)]


def main() -> int:
    """Run the checks and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dist", type=Path, help="folder with the sdist and the wheel")
    arguments = parser.parse_args()
    version = version_of(ROOT)
    problems = [*git_problems(ROOT, version), *version_problems(ROOT), *changelog_problems(ROOT, version)]
    if arguments.dist is not None:
        problems += dist_problems(ROOT, arguments.dist)
    if problems:
        print(f"error: {len(problems)} problem{'s' * (len(problems) > 1)} with release {version}", file=sys.stderr)
        print("\n".join(f"  {number}. {text}" for number, text in enumerate(problems, 1)), file=sys.stderr)
        return 1
    checked = "version, changelog" + (", wheel, sdist, docs" if arguments.dist is not None else "")
    print(f"release {version}: {checked} are correct")
    return 0


if __name__ == "__main__":
    sys.exit(main())
