"""Write trained models in the formats of other libraries; every export is compared with its source."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from paddle_llm.export.api import Exported, export, size_in_bytes
    from paddle_llm.export.options import Options

__all__ = ["Exported", "Options", "export", "size_in_bytes"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{'options' if name == 'Options' else 'api'}"), name)
