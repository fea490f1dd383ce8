"""Makes batches of samples with numpy alone: a paddle tensor made in a forked dataloader worker crashes it."""

from __future__ import annotations

import numpy as np


def collate_numpy(samples: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Stack samples: B dicts of arrays of shape [...] become one dict of arrays [B, ...]."""
    return {name: np.stack([sample[name] for sample in samples]) for name in samples[0]}
