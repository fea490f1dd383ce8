"""Gradients on their way to the ranks that own them: collected into buckets, each bucket reduced by one collective.

A gradient leaves its parameter when its bucket is sent, on every rank; on the owner the sum comes back to it. So a
parameter that gets a second gradient meanwhile (its layer is used twice, and recomputed) loses nothing: what comes back
is added to what is there.

What is under way at one time is limited. A third of the limit may wait, a third may be on its way (a bucket is one
flat copy of its gradients; on a GPU its reduction runs beside the backward pass), a third is the gradient that has just
been made. A gradient larger than that goes alone, in its own memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import paddle
import paddle.distributed as dist

from paddle_llm.parallel.same_order import SameOrder


@dataclass
class _Sent:
    """A bucket on its way: its flat tensor, whose gradients it has, and the collective's task."""

    task: Any
    flat: paddle.Tensor
    parameters: list
    shapes: list[list[int]]
    owner: int


class GradientBuckets:
    """Takes gradients and sums them over a group on their owners.

    Args:
        group: the sharding group; `rank` is this process's place in it.
        owner: the rank in the group that owns a parameter.
        limit: bytes that may be under way at one time.
        order: checks that all ranks send the same.
    """

    def __init__(self, group: Any, rank: int, owner: Callable[[Any], int], limit: int, order: SameOrder):
        self._group = group
        self._rank = rank
        self._owner = owner
        self._capacity = limit // 3
        self._order = order
        # By owner and type; a parameter's name leads to it and the bytes of its gradient.
        self._waiting: dict[tuple[int, paddle.dtype], dict[str, tuple[Any, int]]] = {}
        self._sent: _Sent | None = None

    @paddle.no_grad()
    def add(self, parameter: Any) -> None:
        """Take the gradient of a parameter, if it has one; it may be sent now, or wait for others of the same owner."""
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
        """A backward pass has ended: let nothing wait for the next one."""
        while self._waiting:
            self._send_fullest()
        self._order.end_of_backward()

    @paddle.no_grad()
    def settle(self) -> None:
        """Wait for what is on its way; its owner has the sum then."""
        sent, self._sent = self._sent, None
        if sent is None:
            return
        sent.task.wait()
        if sent.owner == self._rank:
            _give_back(sent)

    def _waiting_bytes(self) -> int:
        return sum(_bytes(bucket) for bucket in self._waiting.values())

    def _send_fullest(self) -> None:
        key = max(self._waiting, key=lambda k: _bytes(self._waiting[k]))
        self._send(key[0], [parameter for parameter, _ in self._waiting.pop(key).values()])

    def _send(self, owner: int, parameters: list) -> None:
        self.settle()
        self._order.check(owner, parameters)
        shapes = [list(gradient_of(p).shape) for p in parameters]
        flat = _taken(parameters)
        task = dist.reduce(flat, dst=self._group.ranks[owner], group=self._group, sync_op=False)
        self._sent = _Sent(task, flat, parameters, shapes, owner)
        if task.is_completed():  # always on a CPU, where a collective is done when it returns
            self.settle()


def _bytes(bucket: dict[str, tuple[Any, int]]) -> int:
    return sum(size for _, size in bucket.values())


def _taken(parameters: list) -> paddle.Tensor:
    """The gradients as one flat tensor, and gone from their parameters. One alone keeps its memory."""
    parts = [gradient_of(p).reshape([-1]) for p in parameters]
    flat = paddle.concat(parts) if len(parts) > 1 else parts[0]
    for parameter in parameters:
        _free(parameter)
    return flat


def _give_back(sent: _Sent) -> None:
    """The sums to their parameters, as views of the flat tensor."""
    start = 0
    for parameter, shape in zip(sent.parameters, sent.shapes, strict=True):
        end = start + math.prod(shape)
        part = sent.flat[start:end].reshape(shape)
        start = end
        newer = gradient_of(parameter)
        if newer is not None:
            newer.add_(part)
        elif hasattr(parameter, "main_grad"):
            parameter.main_grad = part
        else:
            parameter._copy_gradient_from(part)  # shares its memory, in spite of the name


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
