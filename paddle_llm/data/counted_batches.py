"""Counts the labels and tokens of a batch on the host, in the dataloader worker that creates it.

The training loop needs these numbers on the host, but the loader returns batches on the device. Counting labels there
makes the host wait for the device in every micro-batch. Here they are counted with numpy and passed on as plain
integers, which Paddle's DataLoader leaves on the host.

Shape suffixes: B rows, S positions, M positions with a label.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from paddle_llm.core.artifacts import IGNORE_INDEX
from paddle_llm.data.collate import Sample

LABEL_COUNT, TOKEN_COUNT = "label_count", "token_count"
LABELLED_POSITIONS, POSITION_LABELS = "labelled_positions", "position_labels"
# Copying the hidden states of labelled positions pays off below this share of positions.
_MAX_LABELLED_SHARE = 0.9

Batch = dict[str, Any]


@dataclass(frozen=True)
class CountedBatches:
    """Collates samples and adds the number of labels and tokens of the batch.

    Attributes:
        collate: Function from samples to a batch with `labels` [B, S].
        count_tokens: Function from a batch to its number of tokens without padding; None if each token has a label.
        pick_multiple: Multiple to which the number of labelled positions is rounded up, so that their logits have few
            different sizes; None: labelled positions are not picked.
    """

    collate: Callable[[list[Sample]], Batch]
    count_tokens: Callable[[Batch], int] | None = None
    pick_multiple: int | None = None

    def __call__(self, samples: list[Sample]) -> Batch:
        """Return the batch of `collate` with the integers LABEL_COUNT and TOKEN_COUNT.

        If positions are picked and it pays off, also return LABELLED_POSITIONS [M], indices into the flattened labels,
        and POSITION_LABELS [1, M], their labels.
        """
        batch = self.collate(samples)
        labels_BS = np.asarray(batch["labels"])
        label_count = int(np.count_nonzero(labels_BS != IGNORE_INDEX))
        token_count = label_count if self.count_tokens is None else self.count_tokens(batch)
        counts: Batch = {LABEL_COUNT: label_count, TOKEN_COUNT: token_count}
        return {**batch, **counts, **self._picked(labels_BS)}

    def _picked(self, labels_BS: np.ndarray) -> Batch:
        if self.pick_multiple is None:
            return {}
        labels = labels_BS.reshape(-1)
        positions_M = np.flatnonzero(labels != IGNORE_INDEX)
        size = max(-(-len(positions_M) // self.pick_multiple), 1) * self.pick_multiple
        if size > _MAX_LABELLED_SHARE * labels.size:
            return {}
        # Padded with position 0 and an ignored label, whose loss and gradient are zero.
        missing = size - len(positions_M)
        return {
            LABELLED_POSITIONS: np.pad(positions_M, (0, missing)),
            POSITION_LABELS: np.pad(labels[positions_M], (0, missing), constant_values=IGNORE_INDEX)[None],
        }


def count_instruction_tokens(batch: Batch) -> int:
    """Return the number of tokens of a fine-tuning batch.

    A sample ends with its answer, and its last label belongs to the token before the end.
    """
    if "segment_lengths" in batch:
        return int(np.asarray(batch["segment_lengths"]).sum())
    labels_BS = np.asarray(batch["labels"])
    ends_S = np.arange(1, labels_BS.shape[1] + 1)
    return int(((labels_BS != IGNORE_INDEX) * ends_S).max(axis=1).sum())
