"""Converts adapters with a resolved base, like `paddle-llm convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from paddle_llm.checkpoint.locate import locate_base
from paddle_llm.peft.hugging_face import convert


def to_peft(folder: Path, out: Path, *, base: str | Path | None = None, **options: Any) -> str:
    return convert.to_peft(folder, out, locate_base(folder, base), **options)


def from_peft(folder: Path, out: Path, *, base: str | Path | None = None, **options: Any) -> str:
    return convert.from_peft(folder, out, locate_base(folder, base), **options)
