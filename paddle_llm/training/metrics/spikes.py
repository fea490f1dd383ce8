"""Loss spikes: steps whose loss is far above the losses before them.

The criterion is that of OLMo-core (`SkipStepOptimizer`): a loss above the mean of the last 128 losses by more than 6
standard deviations. After equal losses every larger loss is a spike. Losses are float32 numbers, so the standard
deviation is at least one float32 step at the mean: a difference by rounding is not a spike.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import Any

WINDOW = 128
THRESHOLD = 6.0
_FEWEST = 64  # losses below which the standard deviation is not used
_FLOAT32_STEP = 2.0**-23  # between 1 and the next float32
_FLOAT32_SMALLEST = 2.0**-126


@dataclass
class SpikeMonitor:
    """Compares the loss of each step with the losses before it; the same on every rank.

    Attributes:
        losses: Losses of the last 128 steps, the latest one last; steps whose loss is not finite are not among them.
        count: Number of spikes since the start of the training.
    """

    losses: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))
    count: int = 0

    def deviations(self, loss: float) -> float:
        """Return by how many standard deviations a loss is above the mean; 0 after fewer than 64 losses."""
        number = len(self.losses)
        if number < _FEWEST or not math.isfinite(loss):
            return 0.0
        mean = math.fsum(self.losses) / number
        deviation = math.sqrt(math.fsum((one - mean) ** 2 for one in self.losses) / number)
        return (loss - mean) / max(deviation, abs(mean) * _FLOAT32_STEP, _FLOAT32_SMALLEST)

    def is_spike(self, loss: float) -> bool:
        """Return whether a loss is a spike, before `add`."""
        return self.deviations(loss) > THRESHOLD

    def add(self, loss: float) -> float | None:
        """Add the loss of a step. A spike is added, too, so that a loss that stays high is not a spike for long.

        Args:
            loss: Mean loss of the global batch.

        Returns:
            Standard deviations above the mean if the loss is a spike, else None.
        """
        deviations = self.deviations(loss)
        if math.isfinite(loss):
            self.losses.append(loss)
        if deviations <= THRESHOLD:
            return None
        self.count += 1
        return deviations

    def state(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return {"losses": list(self.losses), "count": self.count}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a state that `state` returned."""
        self.losses = deque(state["losses"], maxlen=WINDOW)
        self.count = state["count"]
