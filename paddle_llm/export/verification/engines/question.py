"""What a verification asks every engine, and what it hears."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from paddle_llm.models.prompt import Prompt


@dataclass(frozen=True)
class Question:
    """Prompts to be continued greedily, over any end of text, so that as many tokens are compared as were asked for.

    Attributes:
        family: the model's, by name.
        texts: for the engine's own tokenizer; empty where the source has none.
        text_ids: what the source's tokenizer makes of them.
        new_tokens: behind each prompt.
    """

    folder: Path
    family: str
    prompts: Sequence[Prompt]
    texts: Sequence[str]
    text_ids: Sequence[Sequence[int]]
    new_tokens: int


@dataclass(frozen=True)
class Answers:
    """What one engine makes of a question.

    Attributes:
        engine: its name and version.
        tokens: of each prompt.
        logits_NV: of each prompt, those that each of its N tokens was chosen by.
        text_ids: ids of the texts, where the engine has read the folder's tokenizer.
        tokenizer_problem: why it could not.
        end_ids: what ends a text, as the engine has read it; None where it reads no such thing.
        note: how it was asked, where that must be known.
    """

    engine: str
    tokens: Sequence[Sequence[int]]
    logits_NV: Sequence[np.ndarray]
    text_ids: Sequence[Sequence[int]] | None = None
    tokenizer_problem: str = ""
    end_ids: Collection[int] | None = None
    note: str = ""


class NotRun(Exception):
    """The engine is not installed, or has no such model: why, and what to do."""


class EngineFailed(Exception):
    """The engine has looked at the folder and says what is wrong with it."""


class EngineEnded(Exception):
    """The engine ended before it had answered: how, and its own last words. Whose fault that is, is not known."""


def continue_greedily(network: Any, new_tokens: int) -> tuple[list[list[int]], list[np.ndarray]]:
    """The likeliest tokens [B, N], and of each row the logits [N, V] that they were chosen by.

    Args:
        network: one batch of prompts, behind the interface of `models/incremental.py`.
    """
    logits_BV = network.read_prompts()
    tokens_NB, logits_NBV = [], []
    while True:
        tokens_B = logits_BV.argmax(axis=-1)
        tokens_NB.append(tokens_B.numpy())
        logits_NBV.append(logits_BV.numpy())
        if len(tokens_NB) == new_tokens:
            return np.stack(tokens_NB, axis=1).tolist(), list(np.stack(logits_NBV, axis=1))
        logits_BV = network.read(tokens_B)
