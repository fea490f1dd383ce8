"""Makes batches of samples with numpy alone: a paddle tensor made in a forked dataloader worker crashes it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from paddle_llm.core.artifacts import IGNORE_INDEX

_PER_SEGMENT = ("segment_lengths", "prefix_lengths")
_PER_TOKEN = ("input_ids", "labels", "position_ids")


def collate_numpy(samples: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Stack samples: B dicts of arrays of shape [...] become one dict of arrays [B, ...]."""
    return {name: np.stack([sample[name] for sample in samples]) for name in samples[0]}


@dataclass(frozen=True)
class PadAndStack:
    """Stacks samples of unequal lengths, padded on the right: input_ids with pad_id, labels with -100, position_ids with the last one.

    Causal attention needs no mask for it: nothing that counts looks to its right. `segment_lengths` (packed rows) are padded with
    zeros to the most segments of the batch; what is left of a row behind them is padding.

    Args:
        length: pad to it (a pipeline's stages need one shape), None: to the longest of the batch.
        multiple_of: round the longest up to a multiple of it.
    """

    pad_id: int
    length: int | None = None
    multiple_of: int = 1

    def __call__(self, samples: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """B samples of L_b tokens -> arrays [B, L] (position_ids may be [B, 2, L]).

        Raises:
            ValueError: a sample longer than the fixed length.
        """
        longest = max(len(sample["input_ids"]) for sample in samples)
        if self.length is not None and longest > self.length:
            raise ValueError(f"a sample of {longest} tokens does not fit rows of {self.length}")
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
        more = length - values.shape[-1]
        if name == "position_ids":
            # Not counting on: a network's table of positions may be shorter than a packed row.
            return np.concatenate([values, np.repeat(values[..., -1:], more, axis=-1)], axis=-1)
        fill = IGNORE_INDEX if name == "labels" else self.pad_id
        return np.pad(values, (0, more), constant_values=fill)
