"""The order in which each pipeline rank runs its forward and backward passes, for every pipeline schedule.

Letters: p pipeline ranks, m micro-batches, v virtual stages per rank. The model is cut into p * v chunks; chunk c of rank
r is position c * p + r of the model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate
from typing import Literal, NamedTuple

from paddle_llm.core.errors import UserError

Kind = Literal["forward", "backward", "weight"]


class Operation(NamedTuple):
    """One pass of one micro-batch through one chunk of the model.

    Attributes:
        kind: `forward`, `backward`, or `weight`. Only the zero-bubble schedule has `weight`: the gradients of the
            weights, which no other rank waits for; `backward` then computes the gradient of the input only.
        rank: Pipeline rank that runs it.
        chunk: Virtual stage of the rank.
        micro_batch: Number of the micro-batch.
    """

    kind: Kind
    rank: int
    chunk: int
    micro_batch: int


@dataclass(frozen=True, eq=False)
class PipelineSchedule:
    """The order of the operations of every pipeline rank.

    Attributes:
        name: `1f1b`, `interleaved` or `zero-bubble`.
        ranks: Number of pipeline ranks, p.
        micro_batches: Number of micro-batches of a step, m.
        chunks: Virtual stages per rank, v.
        orders: Operations of each rank, in order.
    """

    name: str
    ranks: int
    micro_batches: int
    chunks: int
    orders: tuple[tuple[Operation, ...], ...]

    @property
    def positions(self) -> int:
        """Number of chunks of the model, p * v."""
        return self.ranks * self.chunks

    def position(self, operation: Operation) -> int:
        """Return the position in the model of the chunk that an operation runs, 0 to p * v - 1."""
        return operation.chunk * self.ranks + operation.rank

    @cached_property
    def operations(self) -> tuple[Operation, ...]:
        """All operations, rank by rank."""
        return tuple(operation for order in self.orders for operation in order)

    def in_flight(self, rank: int) -> int:
        """Return the largest number of forward passes of a rank whose activations are kept at the same time.

        Activations are kept until the backward pass, in the zero-bubble schedule until the gradients of the weights.
        """
        last = "weight" if self.name == "zero-bubble" else "backward"
        changes = {"forward": 1, last: -1}
        return max(accumulate(changes.get(operation.kind, 0) for operation in self.orders[rank]))


def one_forward_one_backward(ranks: int, micro_batches: int) -> PipelineSchedule:
    """Return the 1F1B schedule (Narayanan et al., arXiv:2104.04473, figure 4 top; Paddle's `PipelineParallel`).

    Args:
        ranks: Number of pipeline ranks.
        micro_batches: Number of micro-batches.
    """
    orders = []
    for rank in range(ranks):
        warm_up = min(ranks - rank - 1, micro_batches)
        forward = [Operation("forward", rank, 0, number) for number in range(micro_batches)]
        backward = [Operation("backward", rank, 0, number) for number in range(micro_batches)]
        orders.append(_alternate(forward, backward, warm_up))
    return PipelineSchedule("1f1b", ranks, micro_batches, 1, tuple(orders))


def interleaved(ranks: int, micro_batches: int, chunks: int) -> PipelineSchedule:
    """Return the interleaved 1F1B schedule as Paddle's `PipelineParallelWithInterleave` runs it.

    A rank runs p micro-batches through one chunk, then through the next. A remainder of the division of m by p is added
    to the first group. If p divides m, the order is that of Megatron-LM (arXiv:2104.04473, figure 4 bottom).

    Args:
        ranks: Number of pipeline ranks.
        micro_batches: Number of micro-batches, at least `ranks`.
        chunks: Virtual stages per rank.

    Raises:
        UserError: If there are fewer micro-batches than ranks.
    """
    if micro_batches < ranks:
        raise UserError(
            f"micro_batches = {micro_batches} is less than the {ranks} pipeline ranks. Use at least {ranks} for the "
            "interleaved schedule."
        )
    first = micro_batches % ranks + ranks
    groups = [first] + [ranks] * ((micro_batches - first) // ranks)
    order: list[tuple[int, int]] = []  # (chunk, micro-batch)
    begin = 0
    for size in groups:
        order += [(chunk, number) for chunk in range(chunks) for number in range(begin, begin + size)]
        begin += size
    orders = []
    for rank in range(ranks):
        warm_up = min(2 * (ranks - rank - 1) + (chunks - 1) * first, len(order))
        forward = [Operation("forward", rank, chunk, number) for chunk, number in order]
        backward = [Operation("backward", rank, chunks - 1 - chunk, number) for chunk, number in order]
        orders.append(_alternate(forward, backward, warm_up))
    return PipelineSchedule("interleaved", ranks, micro_batches, chunks, tuple(orders))


def zero_bubble(ranks: int, micro_batches: int) -> PipelineSchedule:
    """Return the ZB-H1 schedule (Qi et al., arXiv:2401.10241, section 3.1), which keeps as many activations as 1F1B.

    Rank r delays the gradients of weights by r micro-batches, so that each rank keeps the activations of at most p
    micro-batches, and fills with them the time in which 1F1B waits at the end.

    Args:
        ranks: Number of pipeline ranks.
        micro_batches: Number of micro-batches.
    """
    orders = []
    for rank in range(ranks):
        forward = min(ranks - rank, micro_batches)
        order = [Operation("forward", rank, 0, number) for number in range(forward)]
        weight = 0
        for backward in range(micro_batches):
            order.append(Operation("backward", rank, 0, backward))
            if backward - weight >= rank:
                order.append(Operation("weight", rank, 0, weight))
                weight += 1
            if forward < micro_batches:
                order.append(Operation("forward", rank, 0, forward))
                forward += 1
        order += [Operation("weight", rank, 0, number) for number in range(weight, micro_batches)]
        orders.append(tuple(order))
    return PipelineSchedule("zero-bubble", ranks, micro_batches, 1, tuple(orders))


def _alternate(forward: list[Operation], backward: list[Operation], warm_up: int) -> tuple[Operation, ...]:
    """Return `warm_up` forward passes, then a forward and a backward pass in turn, then the other backward passes."""
    steady = len(forward) - warm_up
    pairs = zip(forward[warm_up:], backward[:steady], strict=True)
    return (*forward[:warm_up], *(operation for pair in pairs for operation in pair), *backward[steady:])


SCHEDULES: dict[str, Callable[[int, int, int], PipelineSchedule]] = {
    "1f1b": lambda ranks, micro_batches, chunks: one_forward_one_backward(ranks, micro_batches),
    "interleaved": interleaved,
    "zero-bubble": lambda ranks, micro_batches, chunks: zero_bubble(ranks, micro_batches),
}


@lru_cache(maxsize=512)
def build_schedule(name: str, ranks: int, micro_batches: int, chunks: int = 1) -> PipelineSchedule:
    """Return a pipeline schedule by name.

    Args:
        name: Key of `SCHEDULES`.
        ranks: Number of pipeline ranks.
        micro_batches: Number of micro-batches.
        chunks: Virtual stages per rank; above 1 for `interleaved` only.

    Raises:
        UserError: If the schedule does not support the numbers.
    """
    if chunks > 1 and name != "interleaved":
        raise UserError(f"virtual_stages = {chunks} with the schedule {name}. Use --schedule interleaved.")
    return SCHEDULES[name](ranks, micro_batches, chunks)
