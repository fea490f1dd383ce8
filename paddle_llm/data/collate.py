"""Collates samples into batches with numpy only: creating a paddle tensor in a forked dataloader worker crashes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from paddle_llm.core.artifacts import IGNORE_INDEX

_PER_SEGMENT = ("segment_lengths", "prefix_lengths")
_PER_TOKEN = ("input_ids", "labels", "position_ids")

Sample = dict[str, np.ndarray]


class SampleDataset(Protocol):
    """A map-style dataset of samples."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sample: ...


def collate_numpy(samples: list[Sample]) -> Sample:
    """Stack B samples, dicts of arrays [...], into one dict of arrays [B, ...]."""
    return {name: np.stack([sample[name] for sample in samples]) for name in samples[0]}


@dataclass(frozen=True)
class PadAndStack:
    """Stacks samples of unequal lengths, padded on the right.

    input_ids are padded with pad_id, labels with IGNORE_INDEX, and position_ids with their last value. Causal attention
    needs no mask for padding on the right. `segment_lengths` of packed rows are padded with zeros to the largest number
    of segments in the batch; the rest of such a row is padding.

    Attributes:
        pad_id: Token id for padding.
        length: Length of all rows, which a pipeline needs to be constant; None: that of the longest sample.
        multiple_of: Divisor of the length if it follows the longest sample.
    """

    pad_id: int
    length: int | None = None
    multiple_of: int = 1

    def __call__(self, samples: list[Sample]) -> Sample:
        """Collate B samples of L_b tokens into arrays [B, L]; position_ids may be [B, 2, L].

        Raises:
            ValueError: If a sample is longer than the fixed length.
        """
        longest = max(len(sample["input_ids"]) for sample in samples)
        if self.length is not None and longest > self.length:
            raise ValueError(f"a sample of {longest} tokens does not fit into rows of {self.length} tokens")
        length = self.length if self.length is not None else -(-longest // self.multiple_of) * self.multiple_of
        segments = max((len(sample["segment_lengths"]) for sample in samples if "segment_lengths" in sample), default=0)
        padded = []
        for sample in samples:
            row = {}
            for name, values in sample.items():
                if name in _PER_TOKEN:
                    row[name] = self._pad(name, values, length)
                elif name in _PER_SEGMENT:
                    row[name] = np.pad(values, (0, segments - len(values)))
                else:
                    row[name] = values
            padded.append(row)
        return collate_numpy(padded)

    def _pad(self, name: str, values: np.ndarray, length: int) -> np.ndarray:
        missing = length - values.shape[-1]
        if name == "position_ids":
            # Repeated, not counted up: the network's table of positions may be shorter than a packed row.
            return np.concatenate([values, np.repeat(values[..., -1:], missing, axis=-1)], axis=-1)
        fill = IGNORE_INDEX if name == "labels" else self.pad_id
        return np.pad(values, (0, missing), constant_values=fill)
