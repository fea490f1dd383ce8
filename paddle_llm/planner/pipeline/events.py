"""When each operation of a pipeline schedule starts and ends, for unequal stages and many samples at once."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from paddle_llm.planner.pipeline.schedules import Operation, PipelineSchedule, build_schedule

Array = NDArray[np.float64]
_ROUNDS = 6  # rounds of p micro-batches after which a step repeats, also with unequal stages


@dataclass(frozen=True)
class ChunkTimes:
    """Seconds of the operations of each chunk of the model. All arrays may have further axes, one entry per sample.

    Attributes:
        forward: Forward pass of one micro-batch, by position in the model: [p * v, ...].
        backward: Backward pass, of the same shape. With the zero-bubble schedule the gradient of the input only.
        weight: Gradients of the weights in the zero-bubble schedule, of the same shape; 0 otherwise.
        transfer: Transfer of activations, or of their gradients, between a position and the next: [p * v - 1, ...].
        overlap: Whether a rank computes while it sends. Otherwise it waits until its transfer is complete.
    """

    forward: Array
    backward: Array
    weight: Array
    transfer: Array
    overlap: bool = True

    @staticmethod
    def uniform(
        positions: int, forward: float, backward: float, weight: float = 0.0, transfer: float = 0.0
    ) -> ChunkTimes:
        """Return equal times for all positions.

        Args:
            positions: Number of chunks of the model.
            forward: Seconds of a forward pass of one chunk.
            backward: Seconds of its backward pass.
            weight: Seconds of its gradients of weights.
            transfer: Seconds of one transfer.
        """
        each = np.full(positions, 1.0)
        return ChunkTimes(each * forward, each * backward, each * weight, np.full(max(positions - 1, 0), transfer))

    @property
    def samples(self) -> tuple[int, ...]:
        """Shape of the further axes."""
        return self.forward.shape[1:]


@dataclass(frozen=True)
class Timeline:
    """Result of a simulated step.

    Attributes:
        schedule: Schedule.
        start, end: Seconds at which each operation of `schedule.operations` starts and ends: [operations, ...].
    """

    schedule: PipelineSchedule
    start: Array
    end: Array

    @property
    def seconds(self) -> Array:
        """Time from the first operation to the last, of all ranks."""
        latest: Array = self.end.max(axis=0)
        return latest

    def busy(self, rank: int) -> Array:
        """Return the seconds in which a rank computes."""
        counts = [len(order) for order in self.schedule.orders]
        begin = sum(counts[:rank])
        rows = slice(begin, begin + counts[rank])
        total: Array = (self.end[rows] - self.start[rows]).sum(axis=0)
        return total

    @property
    def idle_share(self) -> Array:
        """Share of the step in which a rank does not compute, as the mean of all ranks."""
        busy = np.mean([self.busy(rank) for rank in range(self.schedule.ranks)], axis=0)
        share: Array = 1 - busy / self.seconds
        return share


class _Event(NamedTuple):
    """An operation in an order in which everything it waits for comes before it.

    Attributes:
        number: Index in `schedule.operations`.
        position: Position of its chunk in the model.
        before: Index of the operation that the rank runs before it; -1 for the first.
        source: Index of the operation of another chunk whose output it needs; -1 if it needs none.
        link: Index of the transfer from there; -1 if the source is on the same rank.
        sends: Index of the transfer that the operation starts; -1 without one.
    """

    number: int
    position: int
    before: int
    source: int
    link: int
    sends: int


@lru_cache(maxsize=512)
def events_of(schedule: PipelineSchedule) -> tuple[_Event, ...]:
    """Sort the operations of a schedule by what they wait for.

    Raises:
        ValueError: If operations wait for each other.
    """
    index = {operation: number for number, operation in enumerate(schedule.operations)}
    queues = [deque(order) for order in schedule.orders]
    last = [-1] * schedule.ranks
    ended: set[int] = set()
    events: list[_Event] = []
    waiting = True
    while waiting:
        waiting = False
        for rank, queue in enumerate(queues):
            while queue:
                event = _event(schedule, queue[0], index, last[rank])
                if event.source >= 0 and event.source not in ended:
                    break
                queue.popleft()
                last[rank] = event.number
                ended.add(event.number)
                events.append(event)
                waiting = True
    if len(events) < len(index):
        raise ValueError(f"the operations of {schedule.name} wait for each other")
    return tuple(events)


def _event(schedule: PipelineSchedule, operation: Operation, index: dict[Operation, int], before: int) -> _Event:
    position, final = schedule.position(operation), schedule.positions - 1
    step = {"forward": -1, "backward": 1, "weight": 0}[operation.kind]
    other, target = position + step, position - step
    has_source = operation.kind != "weight" and 0 <= other <= final
    source = -1
    if has_source:
        chunk, rank = divmod(other, schedule.ranks)
        source = index[Operation(operation.kind, rank, chunk, operation.micro_batch)]
    one_rank = schedule.ranks == 1
    link = min(position, other) if has_source and not one_rank else -1
    sends = min(position, target) if operation.kind != "weight" and 0 <= target <= final and not one_rank else -1
    return _Event(index[operation], position, before, source, link, sends)


def run_schedule(schedule: PipelineSchedule, times: ChunkTimes) -> Timeline:
    """Return when each operation starts and ends. An operation starts as soon as its rank is free and its input is there.

    Args:
        schedule: Order of the operations.
        times: Seconds per operation.
    """
    operations = schedule.operations
    shape = (len(operations), *times.samples)
    start, end, free = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    zero = np.zeros(times.samples)
    seconds = {"forward": times.forward, "backward": times.backward, "weight": times.weight}
    for event in events_of(schedule):
        begin = free[event.before] if event.before >= 0 else zero
        if event.source >= 0:
            arrival = end[event.source]
            begin = np.maximum(begin, arrival + times.transfer[event.link] if event.link >= 0 else arrival)
        start[event.number] = begin
        end[event.number] = begin + seconds[operations[event.number].kind][event.position]
        free[event.number] = end[event.number]
        if event.sends >= 0 and not times.overlap:
            free[event.number] = end[event.number] + times.transfer[event.sends]
    return Timeline(schedule, start, end)


def step_seconds(name: str, ranks: int, micro_batches: int, chunks: int, times: ChunkTimes) -> Array:
    """Return the seconds of all forward and backward passes of a step.

    A long step repeats: once every rank alternates forward and backward passes, p further micro-batches take as long as
    the p before. So a step with many micro-batches is extrapolated from two short ones, which gives the same number.

    Args:
        name: Name of the schedule.
        ranks: Number of pipeline ranks.
        micro_batches: Number of micro-batches.
        chunks: Virtual stages per rank.
        times: Seconds per operation.
    """
    rounds, rest = divmod(micro_batches, ranks)
    if rounds <= _ROUNDS + 1:
        return run_schedule(build_schedule(name, ranks, micro_batches, chunks), times).seconds
    shorter, longer = (
        run_schedule(build_schedule(name, ranks, number * ranks + rest, chunks), times).seconds
        for number in (_ROUNDS, _ROUNDS + 1)
    )
    total: Array = longer + (rounds - _ROUNDS - 1) * (longer - shorter)
    return total
