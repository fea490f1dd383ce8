"""The modules of `.ci/release`, which are scripts and belong to no package."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[2]


def release_module(name: str) -> ModuleType:
    """Import `.ci/release/NAME.py`."""
    spec = importlib.util.spec_from_file_location(f"release_{name}", ROOT / ".ci" / "release" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module
