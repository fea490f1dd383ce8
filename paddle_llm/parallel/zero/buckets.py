"""Reduce gradients to the ranks that own them, in buckets with one collective each.

A gradient is removed from its parameter when its bucket is sent, on every rank. It is divided by the number of ranks
before it is reduced: the reduction gives the mean, and no intermediate value grows with the number of ranks (in float16
a sum over 16 ranks overflows four bits earlier). The owner adds the means of a step's micro-batches in `sums`, separate
from the parameters, so that a reduced mean is never sent again. `hand_over` makes the sums the gradients of the
parameters.

The memory in flight is limited, and the limit has equal parts: one for gradients that wait, one for each bucket that
is being reduced (a flat copy of its gradients; on a GPU the reduction runs beside the backward pass), and one for the
newest gradient. A gradient larger than a part is sent separately, in its own memory.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import paddle
import paddle.distributed as dist
from paddle import Tensor
from paddle.distributed.collective import Group

from paddle_llm.parallel.zero.order_check import SameOrder

IN_FLIGHT = 2  # buckets that are reduced at the same time
PARTS = IN_FLIGHT + 2  # parts of the limit: buckets in flight, gradients that wait, the newest gradient


@dataclass
class _Sent:
    """A bucket that is being reduced.

    Attributes:
        task: Task of the collective.
        flat: Gradients in one flat tensor.
        parameters: Parameters of the gradients.
        shapes: Shapes of the gradients.
        owner: Rank in the group that owns the parameters.
    """

    task: Any
    flat: Tensor
    parameters: list[Tensor]
    shapes: list[list[int]]
    owner: int


class GradientBuckets:
    """Collects gradients and averages them over a group on their owners.

    Args:
        group: Sharding group.
        rank: Rank of this process in the group.
        owner: Function from a parameter to the rank in the group that owns it.
        limit: Bytes that may be in flight at the same time.
        order: Check that all ranks send the same buckets.

    Attributes:
        sums: Gradients that this rank owns, by parameter name, summed over the micro-batches that are reduced so far.
    """

    def __init__(self, group: Group, rank: int, owner: Callable[[Tensor], int], limit: int, order: SameOrder):
        self._group = group
        self._rank = rank
        self._owner = owner
        self._capacity = limit // PARTS
        self._order = order
        # (owner, dtype) -> name of a parameter -> the parameter and the bytes of its gradient.
        self._waiting: dict[tuple[int, paddle.dtype], dict[str, tuple[Tensor, int]]] = {}
        self._sent: deque[_Sent] = deque()
        self.sums: dict[str, Tensor] = {}

    @paddle.no_grad()
    def add(self, parameter: Tensor) -> None:
        """Collect the gradient of a parameter, if it has one; send it now or with other gradients of the same owner."""
        gradient = gradient_of(parameter)
        if gradient is None:
            return
        key = (self._owner(parameter), gradient.dtype)
        if parameter.name in self._waiting.get(key, {}):
            return  # the second gradient has been added to the first one, which is not sent yet
        size = gradient.size * gradient.element_size()
        while self._waiting and self._waiting_bytes() + size > self._capacity:
            self._send_fullest()
        self._waiting.setdefault(key, {})[parameter.name] = (parameter, size)
        if size > self._capacity:
            self._send_fullest()

    @paddle.no_grad()
    def send_all(self) -> None:
        """Send the waiting gradients at the end of a backward pass."""
        while self._waiting:
            self._send_fullest()
        self._order.end_of_backward()

    @paddle.no_grad()
    def hand_over(self, parameters: Iterable[Tensor]) -> None:
        """Wait for all reductions and make the sums the gradients of their parameters.

        Args:
            parameters: Parameters that this rank owns.
        """
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

    def _send(self, owner: int, parameters: list[Tensor]) -> None:
        while len(self._sent) >= IN_FLIGHT:
            self._finish_oldest()
        self._order.check(owner, parameters)
        shapes = [list(_require_gradient(p).shape) for p in parameters]
        flat = _take_gradients(parameters)
        flat.scale_(1.0 / self._group.nranks)
        task = dist.reduce(flat, dst=self._group.ranks[owner], group=self._group, sync_op=False)
        self._sent.append(_Sent(task, flat, parameters, shapes, owner))
        if task.is_completed():  # always on a CPU, where a collective has finished when it returns
            self._finish_oldest()

    def _finish_oldest(self) -> None:
        sent = self._sent.popleft()
        sent.task.wait()
        if sent.owner == self._rank:
            self._add_to_sums(sent)

    def _add_to_sums(self, sent: _Sent) -> None:
        """Add the means, views of the flat tensor, to the sums of the step."""
        start = 0
        for parameter, shape in zip(sent.parameters, sent.shapes, strict=True):
            end = start + math.prod(shape)
            part = sent.flat[start:end].reshape(shape)
            start = end
            if parameter.name in self.sums:
                self.sums[parameter.name].add_(part)
            else:
                self.sums[parameter.name] = part


def _bytes(bucket: dict[str, tuple[Tensor, int]]) -> int:
    return sum(size for _, size in bucket.values())


def _take_gradients(parameters: list[Tensor]) -> Tensor:
    """Remove the gradients from their parameters and return them in one flat tensor; a single one keeps its memory."""
    parts = [_require_gradient(p).reshape([-1]) for p in parameters]
    flat = paddle.concat(parts) if len(parts) > 1 else parts[0]
    for parameter in parameters:
        _free(parameter)
    return flat


def _set_gradient(parameter: Tensor, gradient: Tensor) -> None:
    if hasattr(parameter, "main_grad"):
        parameter.main_grad = gradient
    else:
        parameter._copy_gradient_from(gradient)  # shares its memory, despite the name


def gradient_of(parameter: Tensor) -> Tensor | None:
    """Return a parameter's gradient, `main_grad` of mixed precision if it exists; None without memory."""
    main_grad = getattr(parameter, "main_grad", None)
    if main_grad is not None:
        return main_grad
    gradient = parameter._grad_ivar()
    return gradient if gradient is not None and gradient._is_initialized() else None


def _require_gradient(parameter: Tensor) -> Tensor:
    gradient = gradient_of(parameter)
    assert gradient is not None
    return gradient


def _free(parameter: Tensor) -> None:
    if getattr(parameter, "main_grad", None) is not None:
        parameter.main_grad = None
    else:
        parameter.clear_gradient(False)
