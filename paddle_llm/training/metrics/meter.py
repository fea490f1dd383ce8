"""What happened since the last row of metrics: losses, tokens, time. Sums live on each rank until a row is asked for."""

from __future__ import annotations

import math
import resource
import time
from dataclasses import asdict, dataclass, field

import paddle
import paddle.distributed as dist

from paddle_llm.planner.flops import mfu


@dataclass
class Window:
    """Sums since the last row, on this rank; a checkpoint carries them so that a resumed row is the same row."""

    loss_times_labels: float = 0.0
    labels: float = 0.0
    tokens: int = 0
    steps: int = 0
    seconds: float = 0.0
    data_wait_seconds: float = 0.0


@dataclass
class Meter:
    """Collects one run's numbers.

    Attributes:
        flops_per_token: model FLOPs, forward and backward; None where unknown.
        peak_flops: of one device; None where unknown (then `mfu` is null).
        model_ranks: ranks that see the same data (tensor x pipeline).
    """

    flops_per_token: float | None
    peak_flops: float | None
    model_ranks: int
    window: Window = field(default_factory=Window)
    step: int = 0
    consumed_tokens: int = 0
    skipped_steps: int = 0
    learning_rate: float = 0.0
    _micro_tokens: int = 0
    _micro_labels: int = 0
    _step_began: float = field(default_factory=time.perf_counter)
    _waiting_since: float | None = None

    def start_waiting(self) -> None:
        self._waiting_since = time.perf_counter()

    def data_arrived(self) -> None:
        if self._waiting_since is not None:
            self.window.data_wait_seconds += time.perf_counter() - self._waiting_since
            self._waiting_since = None

    def start_step(self) -> None:
        """The clock of the next step starts here, after evaluation and saving."""
        self._step_began = time.perf_counter()
        self._waiting_since = self._step_began

    def add_tokens(self, count: int, labels: int) -> None:
        """Tokens of one micro batch of this rank, without padding, and how many labels bear loss."""
        self._micro_tokens += count
        self._micro_labels += labels

    def end_step(self, step: int, loss: float, *, labels: float | None, skipped: bool) -> None:
        """A step is done. A skipped one counts for nothing but time.

        Args:
            loss: this rank's mean over its micro batches, whose sums were all divided by the same number...
            labels: ...which is this over the micro batches of a rank; None: each by the number of its own labels.
        """
        tokens, self._micro_tokens = self._micro_tokens, 0
        own, self._micro_labels = self._micro_labels, 0
        weight = float(own) if labels is None else labels
        if skipped or not math.isfinite(loss):
            self.skipped_steps += 1
        else:
            self.window.loss_times_labels += loss * weight
            self.window.labels += weight
            self.window.tokens += tokens
        self.step = step
        self.window.steps += 1
        self.window.seconds += time.perf_counter() - self._step_began

    def row(self, *, grad_norm: float | None, consumed_samples: int) -> dict:
        """One row of metrics over all ranks, and a fresh window. Collective: every rank calls it at the same step."""
        world = dist.get_world_size()
        window, self.window = self.window, Window()
        sums = [window.loss_times_labels, window.labels, float(window.tokens), float(_peak_memory_bytes())]
        per_rank = _gather(sums)
        losses, labels, tokens = (sum(row[i] for row in per_rank) / self.model_ranks for i in range(3))
        self.consumed_tokens += round(tokens)
        speed = tokens / window.seconds
        return {
            "step": self.step,
            "loss": losses / labels if labels else None,
            "grad_norm": grad_norm if grad_norm is not None and math.isfinite(grad_norm) else None,
            "learning_rate": self.learning_rate,
            "tokens_per_second": speed,
            "tokens_per_second_per_device": speed / world,
            "mfu": mfu(self.flops_per_token, speed / world, self.peak_flops),
            "peak_memory_bytes": int(max(row[3] for row in per_rank)),
            "consumed_samples": consumed_samples,
            "consumed_tokens": self.consumed_tokens,
            "step_seconds": window.seconds / window.steps,
            "data_wait_seconds": window.data_wait_seconds / window.steps,
            "skipped_steps": self.skipped_steps,
        }

    def state(self) -> dict:
        """What a checkpoint keeps of every rank (a list, by rank), so that the next row loses nothing."""
        per_rank = _gather([self.window.loss_times_labels, self.window.labels, float(self.window.tokens)])
        return {
            "window": asdict(self.window),
            "per_rank": per_rank,
            "consumed_tokens": self.consumed_tokens,
            "skipped_steps": self.skipped_steps,
        }

    def restore(self, state: dict, step: int) -> None:
        self.window = Window(**state["window"])
        losses, labels, tokens = state["per_rank"][dist.get_rank()]
        self.window.loss_times_labels, self.window.labels, self.window.tokens = losses, labels, int(tokens)
        self.consumed_tokens = state["consumed_tokens"]
        self.skipped_steps = state["skipped_steps"]
        self.step = step


def _gather(values: list[float]) -> list[list[float]]:
    """The same few numbers of every rank, in float64, by rank."""
    if dist.get_world_size() == 1:
        return [values]
    rows: list[paddle.Tensor] = []
    dist.all_gather(rows, paddle.to_tensor(values, dtype="float64"))
    return paddle.stack(rows).tolist()


def _peak_memory_bytes() -> int:
    """Peak of the device's allocator; on a CPU the peak resident size of this process."""
    if paddle.device.get_device().startswith("gpu"):
        return paddle.device.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
