"""Record the masks that the dropout layers of a real training draw, and its final weights."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from paddle_llm.rehearse.case import Case

DROPOUT = {"hidden_dropout_prob": 0.5, "attention_probs_dropout_prob": 0.5}


@dataclass
class Dropped:
    """The dropout masks of one rank.

    Attributes:
        hidden: Masks of hidden states in the order of the calls: True where a value was kept.
        attention: Masks of attention probabilities, [B, heads of this rank, S, S] or with the first two axes merged.
        weights: Weights after the training, by canonical name.
    """

    hidden: list[np.ndarray]
    attention: list[np.ndarray]
    weights: dict[str, np.ndarray]


def run_with_dropout(case: Case, folder: Path, resume_from: Path | None = None, **settings: Any) -> Dropped:
    """Train a case with dropout on this rank; `settings` are RunConfig's."""
    from paddle_llm.parallel.process.start import start_process

    start_process("cpu", case.layout.world_size)
    from paddle_llm.models.weights.full_weights import family_name
    from paddle_llm.models.weights.names import canonical_parameters
    from paddle_llm.rehearse.case_trainer import trainer_of

    masks: list[np.ndarray] = []
    with _recorded_dropout(masks):
        trainer = trainer_of(case, str(folder), **DROPOUT, **settings)
        trainer.train(resume_from_checkpoint=resume_from)
    named = canonical_parameters(trainer.model, family_name(trainer.model))
    return Dropped(
        hidden=[mask for mask in masks if mask.shape[-1] != case.config.max_seq_length],
        attention=[mask for mask in masks if mask.shape[-1] == case.config.max_seq_length],
        weights={name: parameter.numpy() for name, parameter in named},
    )


@contextmanager
def _recorded_dropout(masks: list[np.ndarray]):
    """Record the mask of every dropout. It is drawn for ones, because attention probabilities contain zeros."""
    import paddle
    import paddle.nn.functional as F

    dropout = F.dropout

    def recorded(x, p=0.5, axis=None, training=True, **others):
        if not training or p == 0:
            return dropout(x, p, axis, training, **others)
        scale = dropout(paddle.ones_like(x).detach(), p, axis, training, **others)
        masks.append(scale.numpy() > 0)
        return x * scale

    F.dropout = recorded
    try:
        yield
    finally:
        F.dropout = dropout
