"""What a network reads before it generates. Free of paddle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Prompt:
    """Tokens to read before the first one that is generated.

    Attributes:
        prefix: number of tokens that see each other (ChatGLM-6B), else 0.
        is_cut: the beginning of a question was cut off to fit.
        dropped_rounds: number of oldest rounds that were dropped to fit.
        notes: kinds of what is to be reported about the conversation (data/chat/notes.py).
    """

    ids: Sequence[int]
    prefix: int = 0
    is_cut: bool = False
    dropped_rounds: int = 0
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)
