"""The prompt of a generation. Does not import Paddle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Prompt:
    """Tokens before the first generated token.

    Attributes:
        ids: Token ids.
        prefix: Number of tokens at the beginning that see each other (ChatGLM-6B). Default 0.
        is_cut: Whether the beginning of a question was cut off to fit.
        dropped_rounds: Number of rounds, the oldest ones, that were dropped to fit.
        notes: Kinds of notes to report about the conversation (data/chat/notes.py).
    """

    ids: Sequence[int]
    prefix: int = 0
    is_cut: bool = False
    dropped_rounds: int = 0
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)
