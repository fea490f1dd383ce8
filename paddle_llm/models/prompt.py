"""What a network reads before it generates. Free of paddle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Prompt:
    """Tokens to read before the first one that is generated. prefix: how many of them see each other (ChatGLM-6B), else 0."""

    ids: Sequence[int]
    prefix: int = 0

    def __len__(self) -> int:
        return len(self.ids)
