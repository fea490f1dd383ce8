"""Deprecated import path of the export function: use `from paddle_llm.export import export`."""

from __future__ import annotations

import warnings
from typing import Any

_MOVED = {"export": "api", "Exported": "api", "size_in_bytes": "api", "Options": "options"}


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name not in _MOVED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn(
        f"paddle_llm.export.command.{name} has moved. Use `from paddle_llm.export import {name}`.",
        DeprecationWarning,
        stacklevel=2,
    )
    return getattr(import_module(f"paddle_llm.export.{_MOVED[name]}"), name)
