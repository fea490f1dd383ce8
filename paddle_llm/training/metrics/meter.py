"""Losses, tokens and times since the last row of metrics. Each rank keeps its own sums until a row is written."""

from __future__ import annotations

import math
import resource
import time
from dataclasses import asdict, dataclass, field
from typing import Any

import paddle
import paddle.distributed as dist

from paddle_llm.planner.flops import mfu
from paddle_llm.training.metrics.spikes import SpikeMonitor


@dataclass
class Window:
    """Sums of this rank since the last row. A checkpoint contains them, so that a resumed run writes the same row.

    Attributes:
        loss_times_labels: Sum over steps of the loss times the number of labels.
        labels: Number of labels.
        tokens: Number of tokens without padding.
        steps: Number of optimizer steps.
        seconds: Time of the steps, without evaluation and saving.
        data_wait_seconds: Time spent waiting for data.
    """

    loss_times_labels: float = 0.0
    labels: float = 0.0
    tokens: int = 0
    steps: int = 0
    seconds: float = 0.0
    data_wait_seconds: float = 0.0


@dataclass
class Meter:
    """Collects the metrics of a run.

    Attributes:
        flops_per_token: Model FLOPs per token, forward and backward; None if unknown.
        peak_flops: Peak FLOPs per second of one device; None if unknown (then `mfu` is null).
        model_ranks: Number of ranks that read the same samples (tensor x pipeline).
        window: Sums since the last row.
        step: Optimizer steps so far.
        consumed_tokens: Tokens so far, over all ranks, without padding.
        skipped_steps: Steps without an update so far.
        learning_rate: Learning rate of the current step.
        spikes: Monitor of loss spikes.
    """

    flops_per_token: float | None
    peak_flops: float | None
    model_ranks: int
    window: Window = field(default_factory=Window)
    step: int = 0
    consumed_tokens: int = 0
    skipped_steps: int = 0
    learning_rate: float = 0.0
    spikes: SpikeMonitor = field(default_factory=SpikeMonitor)
    _micro_tokens: int = 0
    _micro_labels: int = 0
    _step_began: float = field(default_factory=time.perf_counter)
    _waiting_since: float | None = None

    def start_waiting(self) -> None:
        """Start the clock of waiting for data."""
        self._waiting_since = time.perf_counter()

    def data_arrived(self) -> None:
        """Stop the clock of waiting for data."""
        if self._waiting_since is not None:
            self.window.data_wait_seconds += time.perf_counter() - self._waiting_since
            self._waiting_since = None

    def start_step(self) -> None:
        """Start the clock of the next step, after evaluation and saving."""
        self._step_began = time.perf_counter()
        self._waiting_since = self._step_began

    def add_tokens(self, count: int, labels: int) -> None:
        """Add one micro-batch of this rank.

        Args:
            count: Number of tokens without padding.
            labels: Number of tokens with a loss.
        """
        self._micro_tokens += count
        self._micro_labels += labels

    def end_step(self, step: int, loss: float, *, labels: float | None, skipped: bool) -> None:
        """Add a finished step. A skipped step counts its time only.

        Args:
            step: Number of the step, 1 for the first.
            loss: Mean loss of this rank's micro-batches.
            labels: Number by which the sums of this rank's micro-batches were divided together; None if each was
                divided by the number of its own labels.
            skipped: Whether the update was skipped.
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

    def mean_loss(self) -> float | None:
        """Return the mean loss since the last row; None if all steps were skipped. Collective over all ranks."""
        per_rank = _gather([self.window.loss_times_labels, self.window.labels])
        losses, labels = (sum(row[i] for row in per_rank) for i in range(2))
        return losses / labels if labels else None

    def row(self, *, grad_norm: float | None, consumed_samples: int) -> dict[str, Any]:
        """Return one row of metrics over all ranks and start a new window. Collective over all ranks.

        docs/reference/metrics.md describes the keys.

        Args:
            grad_norm: Gradient norm of the last step; None before the first step.
            consumed_samples: Samples so far, over all ranks.
        """
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
            "loss_spikes": self.spikes.count,
        }

    def state(self) -> dict[str, Any]:
        """Return the state of all ranks for a checkpoint; `per_rank` is a list by rank. Collective over all ranks."""
        per_rank = _gather([self.window.loss_times_labels, self.window.labels, float(self.window.tokens)])
        return {
            "window": asdict(self.window),
            "per_rank": per_rank,
            "model_ranks": self.model_ranks,
            "consumed_tokens": self.consumed_tokens,
            "skipped_steps": self.skipped_steps,
            "spikes": self.spikes.state(),
        }

    def restore(self, state: dict[str, Any], step: int, holds_all: bool | None = None) -> None:
        """Continue from a state that `state` returned.

        Args:
            state: State of all ranks.
            step: Step at which it was saved.
            holds_all: On another layout than that of the state, whether this rank takes the sums of all ranks (the ranks
                with the first data rank do) or none; None on the same layout.
        """
        self.window = Window(**state["window"])
        if holds_all is None:
            losses, labels, tokens = state["per_rank"][dist.get_rank()]
        else:
            share = 1 / state["model_ranks"] if holds_all else 0.0
            losses, labels, tokens = (share * sum(row[i] for row in state["per_rank"]) for i in range(3))
        self.window.loss_times_labels, self.window.labels, self.window.tokens = losses, labels, round(tokens)
        self.consumed_tokens = state["consumed_tokens"]
        self.skipped_steps = state["skipped_steps"]
        if "spikes" in state:  # checkpoints of earlier versions do not have it
            self.spikes.restore(state["spikes"])
        self.step = step


def _gather(values: list[float]) -> list[list[float]]:
    """Return the values of every rank, in float64, by rank."""
    if dist.get_world_size() == 1:
        return [values]
    rows: list[paddle.Tensor] = []
    dist.all_gather(rows, paddle.to_tensor(values, dtype="float64"))
    return paddle.stack(rows).tolist()


def _peak_memory_bytes() -> int:
    """Return the peak of the device's allocator; on a CPU the peak resident size of this process."""
    if paddle.device.get_device().startswith("gpu"):
        return paddle.device.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
