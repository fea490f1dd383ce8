"""The prompts of a verification, and the answers of an engine."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from paddle_llm.models.prompt import Prompt

if TYPE_CHECKING:
    from paddle_llm.generation.decoding.step import Batch


@dataclass(frozen=True)
class Question:
    """Prompts to continue greedily. End tokens do not end the text, so that all requested tokens are compared.

    Attributes:
        folder: Folder of the export.
        family: Name of the model family.
        prompts: Encoded prompts.
        texts: Texts for the engine's own tokenizer; empty if the source has none.
        text_ids: Ids of the texts, by the source's tokenizer.
        new_tokens: Number of tokens generated for each prompt.
    """

    folder: Path
    family: str
    prompts: Sequence[Prompt]
    texts: Sequence[str]
    text_ids: Sequence[Sequence[int]]
    new_tokens: int


@dataclass(frozen=True)
class Answers:
    """The answers of one engine.

    Attributes:
        engine: Name and version of the engine.
        tokens: Generated tokens of each prompt.
        logits_NV: For each prompt, the logits from which its N tokens were chosen.
        text_ids: Ids of the texts, by the engine's tokenizer; None if it did not read one.
        tokenizer_problem: Reason why it could not read the tokenizer; "" otherwise.
        end_ids: Token ids that end a text in the engine; None if it reads none.
        note: Remark about how the engine was run.
        not_compared: Reason why its logits and tokens cannot be compared with those of the source; "" if they are.
    """

    engine: str
    tokens: Sequence[Sequence[int]]
    logits_NV: Sequence[np.ndarray]
    text_ids: Sequence[Sequence[int]] | None = None
    tokenizer_problem: str = ""
    end_ids: Collection[int] | None = None
    note: str = ""
    not_compared: str = ""


class NotRun(Exception):
    """The engine is not installed, or does not support the model. The message says what to do."""


class EngineFailed(Exception):
    """The engine reported a problem of the folder, which is the message."""


class EngineEnded(Exception):
    """The engine ended without an answer, for an unknown reason. The message has its last output."""


def continue_greedily(batch: Batch, new_tokens: int) -> tuple[list[list[int]], list[np.ndarray]]:
    """Continue a batch greedily.

    Args:
        batch: Batch of prompts.
        new_tokens: N.

    Returns:
        The most likely tokens [B, N], and for each row the logits [N, V] from which they were chosen.
    """
    logits_BV = batch.read_prompts()
    tokens_NB, logits_NBV = [], []
    while True:
        tokens_B = logits_BV.argmax(axis=-1)
        tokens_NB.append(tokens_B.numpy())
        logits_NBV.append(logits_BV.numpy())
        if len(tokens_NB) == new_tokens:
            return np.stack(tokens_NB, axis=1).tolist(), list(np.stack(logits_NBV, axis=1))
        logits_BV = batch.read(tokens_B)
