"""What the training loop must know of a batch on the host, counted where the batch is made.

The loader hands out batches on the device. Counting their labels there makes the host wait for the device in every
micro-batch; here they are counted with numpy in the loader's worker and travel as plain integers, which Paddle's DataLoader
leaves on the host.

Shapes: B rows, S positions, M positions with a label.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from paddle_llm.core.artifacts import IGNORE_INDEX

LABEL_COUNT, TOKEN_COUNT = "label_count", "token_count"
LABELLED_POSITIONS, POSITION_LABELS = "labelled_positions", "position_labels"
# Below this share of positions it pays to copy their hidden states.
_WORTH_PICKING = 0.9

Batch = dict[str, Any]


@dataclass(frozen=True)
class CountedBatches:
    """Collates samples and adds the numbers of their labels and tokens.

    Attributes:
        collate: makes a batch with `labels` [B, S] of samples.
        count_tokens: tokens of a batch without padding.
        pick_multiple: round the number of labelled positions up to a multiple of this, so that their logits have few
            different sizes; None: the labelled positions are not picked.
    """

    collate: Callable[[list[Any]], Batch]
    count_tokens: Callable[[Batch], int]
    pick_multiple: int | None = None

    def __call__(self, samples: list[Any]) -> Batch:
        """The batch of `collate` with LABEL_COUNT and TOKEN_COUNT, integers.

        Where picking is asked for and pays: also LABELLED_POSITIONS [M], indices into the flattened labels, and
        POSITION_LABELS [1, M], their labels.
        """
        batch = self.collate(samples)
        labels_BS = np.asarray(batch["labels"])
        counts: Batch = {
            LABEL_COUNT: int(np.count_nonzero(labels_BS != IGNORE_INDEX)),
            TOKEN_COUNT: self.count_tokens(batch),
        }
        return {**batch, **counts, **self._picked(labels_BS)}

    def _picked(self, labels_BS: np.ndarray) -> Batch:
        if self.pick_multiple is None:
            return {}
        labels = labels_BS.reshape(-1)
        positions_M = np.flatnonzero(labels != IGNORE_INDEX)
        size = max(-(-len(positions_M) // self.pick_multiple), 1) * self.pick_multiple
        if size > _WORTH_PICKING * labels.size:
            return {}
        # What fills up is the first position, without a label: its loss and its gradient are zero.
        filling = size - len(positions_M)
        return {
            LABELLED_POSITIONS: np.pad(positions_M, (0, filling)),
            POSITION_LABELS: np.pad(labels[positions_M], (0, filling), constant_values=IGNORE_INDEX)[None],
        }


def labels_as_tokens(batch: Batch) -> int:
    """Tokens of a pretraining batch: each has a label."""
    return int(np.count_nonzero(np.asarray(batch["labels"]) != IGNORE_INDEX))


def instruction_tokens(batch: Batch) -> int:
    """Tokens of a fine-tuning batch. A sample ends with its answer; the last label belongs to the token before the end."""
    if "segment_lengths" in batch:
        return int(np.asarray(batch["segment_lengths"]).sum())
    labels_BS = np.asarray(batch["labels"])
    ends_S = np.arange(1, labels_BS.shape[1] + 1)
    return int(((labels_BS != IGNORE_INDEX) * ends_S).max(axis=1).sum())
