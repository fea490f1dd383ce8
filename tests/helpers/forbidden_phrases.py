"""Count phrases that docs/glossary.md forbids, and fail if a package has more of them than its baseline.

`python -m tests.helpers.forbidden_phrases` checks; it is a step of `make lint`. With `--update` it writes lower counts into the
baseline. The baseline never grows: a package without an entry must have none of these phrases. With `--list PACKAGE` it prints
every line that counts.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BASELINE = Path(__file__).with_suffix(".json")
# Phrase -> what to write instead. Underscores count as word boundaries, so that names are checked as well.
PHRASES: dict[str, str] = {
    r"is no (?!longer|more\b|more than)\w": "is not a",
    r"anew": "again",
    r"aloud": "reported, logged",
    r"for ever": "forever, or name the limit",
    r"spel(led|t|ling)": "written, named",
    r"who(ever|soever)": "name the person or program",
    r"whichever": "name the choice",
    r"learnt": "learned",
    r"leaves? \w+ (away|out)": "drop, omit",
    r"of (its|their|his|her) own": "own, separate",
    r"rooms?": "package, buffer, budget",
    r"stands?(?! for\b| out\b)": "is (in), appears",
    r"told|tells": "reported, logged, prints",
    r"said": "reported",
    r"mend(s|ed|ing)?": "fix",
    r"what is there": "name the thing",
    r"of that (?=[.,;:])": "name the thing",
    r"asked for": "requested",
}
_PATTERN = re.compile("|".join(rf"(?<![A-Za-z])(?:{phrase})(?![A-Za-z])" for phrase in PHRASES), re.IGNORECASE)
# Files that quote the phrases.
_EXEMPT = {"docs/glossary.md", "tests/helpers/forbidden_phrases.py", "CHANGELOG.md"}


def package_of(name: str) -> str:
    """Return the package of a file: `paddle_llm/config`, `tests/config`, `docs`, or the file itself in the root."""
    parts = name.split("/")
    return "/".join(parts[:2]) if parts[0] in ("paddle_llm", "tests") and len(parts) > 2 else parts[0]


def hits() -> Iterator[tuple[str, int, str]]:
    """Yield path, line number and line for each line of Python and Markdown in the repository that has a forbidden phrase."""
    files = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "*.py", "*.md"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in files.stdout.splitlines():
        if name in _EXEMPT or not (ROOT / name).is_file():
            continue
        for number, line in enumerate((ROOT / name).read_text(encoding="utf-8").splitlines(), 1):
            if _PATTERN.search(line):
                yield name, number, line.strip()


def main(arguments: list[str]) -> int:
    """Run the check.

    Returns:
        Exit code: 1 if a package has more forbidden phrases than its baseline.
    """
    if arguments[:1] == ["--list"]:
        for name, number, line in hits():
            if name.startswith(arguments[1]):
                print(f"{name}:{number}: {line}")
        return 0
    counts = Counter(package_of(name) for name, _, _ in hits())
    baseline: dict[str, int] = json.loads(BASELINE.read_text()) if BASELINE.is_file() else dict(counts)
    grown = {package: count for package, count in counts.items() if count > baseline.get(package, 0)}
    for package, count in sorted(grown.items()):
        print(
            f"{package}: {count} lines with forbidden phrases, {baseline.get(package, 0)} allowed. Rewrite them; list them with"
        )
        print(f"  python -m tests.helpers.forbidden_phrases --list {package}")
    if "--update" in arguments:
        lower = {package: min(counts[package], baseline.get(package, 0)) for package in sorted(baseline)}
        BASELINE.write_text(json.dumps({package: count for package, count in lower.items() if count}, indent=1) + "\n")
    return 1 if grown else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
