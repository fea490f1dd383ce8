"""tests/README.md names every package, every folder of tests and every helper, and only files that exist."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parent
PAGE = (TESTS / "README.md").read_text(encoding="utf-8")


def test_packages_folders_and_helpers_are_listed() -> None:
    packages = [folder.parent.name for folder in TESTS.parent.glob("paddle_llm/*/__init__.py")]
    folders = [folder.parent.name for folder in TESTS.glob("*/__init__.py")]
    helpers = [file.name for file in TESTS.glob("helpers/**/*.py") if file.name != "__init__.py"]
    missing = [name for name in packages if not re.search(rf"`{name}[`.]", PAGE)]
    missing += [name for name in folders if f"{name}/" not in PAGE]
    missing += [name for name in helpers if name not in PAGE]
    assert not missing, f"not in tests/README.md: {missing}"


def test_listed_files_exist() -> None:
    names = re.findall(r"`([\w/.]+(?:\.py|/))`", PAGE)
    found = {name: list(TESTS.glob(name)) or list(TESTS.glob(f"helpers/gpu/{name}")) for name in names}
    absent = [name for name, files in found.items() if not files and not name.startswith("../")]
    assert names and not absent, f"in tests/README.md but absent: {absent}"
