"""Reduce gradients to the ranks that own them, in buckets: one collective per bucket.

A gradient leaves its parameter when its bucket is sent, on every rank. It is divided by the number of ranks before it is
reduced, so that the reduction gives the mean and no intermediate value grows with the number of ranks (in float16 a sum
over 16 ranks overflows four bits earlier). The owner adds up the means of a step's micro-batches in `sums`, apart from
the parameters: a mean that was reduced once is never sent again. `hand_over` makes them the parameters' gradients.

The memory in flight is limited. A part of the limit may wait, a part belongs to the buckets that are being reduced (a
bucket is one flat copy of its gradients; on a GPU its reduction runs beside the backward pass), a part is the gradient
that has just been computed. A gradient larger than a part is sent alone, in its own memory.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import paddle
import paddle.distributed as dist

from paddle_llm.parallel.zero.order_check import SameOrder

IN_FLIGHT = 2  # buckets that are being reduced at one time
PARTS = IN_FLIGHT + 2  # of the limit: one for each of them, one that waits, one for the newest gradient


@dataclass
class _Sent:
    """A bucket that is being reduced: the task, the flat tensor, and the parameters whose gradients it holds."""

    task: Any
    flat: paddle.Tensor
    parameters: list
    shapes: list[list[int]]
    owner: int


class GradientBuckets:
    """Collects gradients and averages them over a group on their owners.

    Args:
        group: the sharding group; `rank` is this process's rank in it.
        owner: maps a parameter to the rank in the group that owns it.
        limit: bytes that may be in flight at one time.
        order: checks that all ranks send the same.

    Attributes:
        sums: by parameter name, the gradients that this rank owns, summed over the micro-batches reduced so far.
    """

    def __init__(self, group: Any, rank: int, owner: Callable[[Any], int], limit: int, order: SameOrder):
        self._group = group
        self._rank = rank
        self._owner = owner
        self._capacity = limit // PARTS
        self._order = order
        # By owner and dtype: the name of a parameter, the parameter, the bytes of its gradient.
        self._waiting: dict[tuple[int, paddle.dtype], dict[str, tuple[Any, int]]] = {}
        self._sent: deque[_Sent] = deque()
        self.sums: dict[str, paddle.Tensor] = {}

    @paddle.no_grad()
    def add(self, parameter: Any) -> None:
        """Collect the gradient of a parameter, if it has one: send it now, or let it wait for others of the same owner."""
        gradient = gradient_of(parameter)
        if gradient is None:
            return
        key = (self._owner(parameter), gradient.dtype)
        if parameter.name in self._waiting.get(key, {}):
            return  # the second gradient has been added to the first, which has not left yet
        size = gradient.size * gradient.element_size()
        while self._waiting and self._waiting_bytes() + size > self._capacity:
            self._send_fullest()
        self._waiting.setdefault(key, {})[parameter.name] = (parameter, size)
        if size > self._capacity:
            self._send_fullest()

    @paddle.no_grad()
    def send_all(self) -> None:
        """A backward pass has ended: send what waits."""
        while self._waiting:
            self._send_fullest()
        self._order.end_of_backward()

    @paddle.no_grad()
    def hand_over(self, parameters: Iterable[Any]) -> None:
        """Wait for all reductions; the sums become the gradients of these parameters, which this rank owns."""
        while self._sent:
            self._finish_oldest()
        for parameter in parameters:
            total = self.sums.pop(parameter.name, None)
            if total is not None:
                _set_gradient(parameter, total)

    def _waiting_bytes(self) -> int:
        return sum(_bytes(bucket) for bucket in self._waiting.values())

    def _send_fullest(self) -> None:
        key = max(self._waiting, key=lambda k: _bytes(self._waiting[k]))
        self._send(key[0], [parameter for parameter, _ in self._waiting.pop(key).values()])

    def _send(self, owner: int, parameters: list) -> None:
        while len(self._sent) >= IN_FLIGHT:
            self._finish_oldest()
        self._order.check(owner, parameters)
        shapes = [list(gradient_of(p).shape) for p in parameters]
        flat = _take(parameters)
        flat.scale_(1.0 / self._group.nranks)
        task = dist.reduce(flat, dst=self._group.ranks[owner], group=self._group, sync_op=False)
        self._sent.append(_Sent(task, flat, parameters, shapes, owner))
        if task.is_completed():  # always on a CPU, where a collective is done when it returns
            self._finish_oldest()

    def _finish_oldest(self) -> None:
        sent = self._sent.popleft()
        sent.task.wait()
        if sent.owner == self._rank:
            self._add_up(sent)

    def _add_up(self, sent: _Sent) -> None:
        """Add the means, views of the flat tensor, to the sums of this step."""
        start = 0
        for parameter, shape in zip(sent.parameters, sent.shapes, strict=True):
            end = start + math.prod(shape)
            part = sent.flat[start:end].reshape(shape)
            start = end
            if parameter.name in self.sums:
                self.sums[parameter.name].add_(part)
            else:
                self.sums[parameter.name] = part


def _bytes(bucket: dict[str, tuple[Any, int]]) -> int:
    return sum(size for _, size in bucket.values())


def _take(parameters: list) -> paddle.Tensor:
    """Move the gradients out of their parameters into one flat tensor. A single gradient keeps its memory."""
    parts = [gradient_of(p).reshape([-1]) for p in parameters]
    flat = paddle.concat(parts) if len(parts) > 1 else parts[0]
    for parameter in parameters:
        _free(parameter)
    return flat


def _set_gradient(parameter: Any, gradient: paddle.Tensor) -> None:
    if hasattr(parameter, "main_grad"):
        parameter.main_grad = gradient
    else:
        parameter._copy_gradient_from(gradient)  # shares its memory, in spite of the name


def gradient_of(parameter: Any) -> paddle.Tensor | None:
    """A parameter's gradient: the one in float32 where mixed precision keeps one (`main_grad`); None without memory."""
    main_grad = getattr(parameter, "main_grad", None)
    if main_grad is not None:
        return main_grad
    gradient = parameter._grad_ivar()
    return gradient if gradient is not None and gradient._is_initialized() else None


def _free(parameter: Any) -> None:
    if getattr(parameter, "main_grad", None) is not None:
        parameter.main_grad = None
    else:
        parameter.clear_gradient(False)
