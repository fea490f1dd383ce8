"""Collectives of a process group that move tensors: broadcast, gather, scatter and barrier.

They are methods for gloo that Paddle 3.3.1 lacks, built from those that it has. `ProcessGroupGloo` is a pybind class,
so Python methods can be set on it, and C++ callers still get the real object.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import paddle
from paddle import Tensor
from paddle.base.core import ProcessGroup

from paddle_llm.parallel.gloo.channels import Task
from paddle_llm.parallel.gloo.dtypes import as_movable, copy_back
from paddle_llm.parallel.process import failure_detection

_native = ProcessGroup  # its methods are not replaced, those of ProcessGroupGloo are


def collective(method: Callable[..., Any]) -> Callable[..., Task]:
    """Let a method run without autograd, return a finished task, and raise errors that name a lost rank."""

    @functools.wraps(method)
    def wrapped(group: ProcessGroup, *args: Any, **kwargs: Any) -> Task:
        with failure_detection.peer_loss_named(), paddle.no_grad():
            return method(group, *args, **kwargs) or Task.done()

    return wrapped


def copy_into(target: Tensor, value: Tensor) -> None:
    """Copy a tensor to another one, unless they share their memory."""
    if value.data_ptr() != target.data_ptr():
        paddle.assign(value.reshape(target.shape), output=target)


def equal_parts(flat: Tensor, count: int) -> list[Tensor]:
    """Return the `count` equal parts of a flat tensor."""
    size = flat.size // count
    return [flat[i * size : (i + 1) * size] for i in range(count)]


@collective
def broadcast(group: ProcessGroup, tensor: Tensor, src: int, sync_op: bool = True) -> None:
    """Send a tensor from one member to all others."""
    if tensor.size:
        work = tensor.contiguous()
        moved = as_movable(work)
        _native.broadcast(group, moved, src, True).wait()
        copy_back(moved, work)
        copy_into(tensor, work)


@collective
def all_gather_into_tensor(group: ProcessGroup, out: Tensor, tensor: Tensor, sync_op: bool = True) -> None:
    """Gather the tensors of all members in one tensor."""
    if out.size:
        work = out.contiguous()
        moved = as_movable(work)
        # With two arguments the native method takes (in, out), and `out` is one tensor.
        _native.all_gather(group, as_movable(tensor.contiguous()), moved).wait()
        copy_back(moved, work)
        copy_into(out, work)


def all_gather(group: ProcessGroup, first: Any, second: Any, sync_op: bool | None = None) -> Task:
    """Gather the tensors of all members; the arguments are (list, tensor, sync_op) or the older (tensor, out)."""
    out, tensor = (first, second) if isinstance(first, list) or sync_op is not None else (second, first)
    if not isinstance(out, list):
        return all_gather_into_tensor(group, out, tensor)
    flat = paddle.empty([group.size() * tensor.size], dtype=tensor.dtype)
    task = all_gather_into_tensor(group, flat, tensor)
    _fill(out, equal_parts(flat, group.size()), tensor.shape)
    return task


@paddle.no_grad()
def _fill(out: list[Tensor], parts: list[Tensor], shape: list[int]) -> None:
    """Copy the parts to the tensors of a list, or append them to an empty list."""
    if not out:
        out.extend(part.reshape(shape) for part in parts)
    for target, part in zip(out, parts, strict=True):
        copy_into(target, part)


@collective
def all_gather_partial(group: ProcessGroup, out: Tensor, tensor: Tensor, num: int, index: int) -> None:
    """Gather a flat tensor of which each member has one of `num` parts, this one part `index`."""
    whole = paddle.empty([tensor.size], dtype=tensor.dtype)
    all_gather_into_tensor(group, whole, equal_parts(tensor.flatten(), num)[index])
    copy_into(out, whole)


@collective
def scatter_tensor(group: ProcessGroup, out: Tensor, tensor: Tensor, src: int, sync_op: bool = True) -> None:
    """Send the equal parts of one member's tensor to all members."""
    if out.size:
        work = out.contiguous()
        moved = as_movable(work)
        at_source, count = group.rank() == src, group.size()
        whole = equal_parts(as_movable(tensor.contiguous()).flatten(), count) if at_source else [moved] * count
        _native.scatter(group, moved, whole, src, True).wait()
        copy_back(moved, work)
        copy_into(out, work)


def scatter(group: ProcessGroup, out: Tensor, tensors: list[Tensor] | Tensor, src: int, sync_op: bool = True) -> Task:
    """Send one tensor of a member's list to each member."""
    if isinstance(tensors, list) and group.rank() == src:
        tensors = paddle.concat([t.flatten() for t in tensors])
    return scatter_tensor(group, out, out if isinstance(tensors, list) else tensors, src)


@collective
def gather(
    group: ProcessGroup,
    tensor: Tensor,
    out: list[Tensor],
    dst: int,
    sync_op: bool = True,
    use_calc_stream: bool = False,
) -> None:
    """Gather the tensors of all members on one of them."""
    if not tensor.size:
        return
    work = as_movable(tensor.contiguous())
    at_destination = group.rank() == dst
    buffers = [paddle.empty_like(work) for _ in range(group.size())] if at_destination else [work]
    _native.gather(group, work, buffers, dst, True).wait()
    if at_destination:
        parts = [paddle.empty_like(tensor) for _ in buffers] if work.dtype != tensor.dtype else buffers
        for buffer, part in zip(buffers, parts, strict=True):
            copy_back(buffer, part)
        _fill(out, parts, tensor.shape)


@collective
def barrier(group: ProcessGroup, device_id: int = -1) -> None:
    """Wait until all members have called this."""
    _native.barrier(group, -1).wait()
