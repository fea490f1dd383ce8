"""Static exports of model folders, for tests."""

from __future__ import annotations

from pathlib import Path


def export_static(folder: Path, out: Path) -> Path:
    """Write `folder`'s program, not verified."""
    from paddle_llm.export.options import Options
    from paddle_llm.export.source.open import open_source
    from paddle_llm.export.targets.static.target import write_static

    out.mkdir(parents=True)
    write_static(open_source(folder), out, Options())
    return out
