"""Point-to-point methods of a process group: send, receive, batches of both, and all-to-all."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable

import paddle
from paddle import Tensor
from paddle.base.core import ProcessGroup

from paddle_llm.parallel.gloo.channels import Batch, Channel, Task
from paddle_llm.parallel.gloo.collectives import collective, copy_into, equal_parts
from paddle_llm.parallel.gloo.p2p import receive_tensor, send_tensor
from paddle_llm.parallel.gloo.rendezvous import connection_server, info_of
from paddle_llm.parallel.gloo.timeout import job_timeout_ms
from paddle_llm.parallel.process import failure_detection

# By (id of the group, direction, peer).
_channels: dict[tuple[int, str, int], Channel] = {}
_connections: dict[tuple[int, str, int], socket.socket] = {}
_collecting = threading.local()  # .batch: the Batch to which transfers are added


def _connection(group: ProcessGroup, direction: str, peer: int) -> socket.socket:
    """Return the connection of one direction to one peer; opened at its first use."""
    key = (id(group), direction, peer)
    if key not in _connections:
        info = info_of(group)
        if direction == "send":
            _connections[key] = connection_server().connect(info.member(peer)[1], info.key, group.rank())
        else:
            _connections[key] = connection_server().connection_from(info.key, peer, job_timeout_ms() / 1000)
    return _connections[key]


def _channel(group: ProcessGroup, direction: str, peer: int) -> Channel:
    key = (id(group), direction, peer)
    if key not in _channels:
        _channels[key] = Channel(f"gloo-{direction}-{peer}")
    return _channels[key]


def _transfer(
    group: ProcessGroup, direction: str, peer: int, work: Callable[[socket.socket], None], sync_op: bool
) -> Task:
    def guarded() -> None:
        with failure_detection.peer_loss_named(info_of(group).member(peer)[0]), paddle.no_grad():
            work(_connection(group, direction, peer))

    channel = _channel(group, direction, peer)
    batch: Batch | None = getattr(_collecting, "batch", None)
    if batch is not None:
        return batch.add(channel, guarded)
    return channel.call(guarded) if sync_op else channel.submit(guarded)


def send(group: ProcessGroup, tensor: Tensor, dst: int, sync_op: bool = True) -> Task:
    """Send a tensor to a member."""
    # An alias: the pipeline frees its outputs (`_clear_dataptr`) while they may still be in transfer.
    alias = tensor.detach().contiguous()
    return _transfer(group, "send", dst, lambda connection: send_tensor(connection, alias), sync_op)


def recv(group: ProcessGroup, tensor: Tensor, src: int, sync_op: bool = True) -> Task:
    """Receive a tensor from a member."""
    alias = tensor.detach()

    def work(connection: socket.socket) -> None:
        buffer = alias.contiguous()
        receive_tensor(connection, buffer)
        copy_into(alias, buffer)

    return _transfer(group, "recv", src, work, sync_op)


def send_partial(group: ProcessGroup, tensor: Tensor, dst: int, num: int, index: int, sync_op: bool = True) -> Task:
    """Send part `index` of the `num` equal parts of the flat tensor."""
    with paddle.no_grad():
        part = equal_parts(tensor.flatten(), num)[index]
    return send(group, part, dst, sync_op)


def recv_partial(group: ProcessGroup, tensor: Tensor, src: int, num: int, index: int, sync_op: bool = True) -> Task:
    """Receive part `index` of the `num` equal parts of the flat tensor; the other parts stay unchanged."""
    alias = tensor.detach()

    def work(connection: socket.socket) -> None:
        buffer = alias.contiguous()
        part = paddle.empty([buffer.size // num], dtype=buffer.dtype)
        receive_tensor(connection, part)
        start = index * part.size
        buffer.view([buffer.size])[start : start + part.size] = part
        copy_into(alias, buffer)

    return _transfer(group, "recv", src, work, sync_op)


@collective
def all_to_all(group: ProcessGroup, outs: list[Tensor], tensors: list[Tensor], sync_op: bool = True) -> None:
    """Send one tensor to each member and receive one from each."""
    batch = Batch()
    outer, _collecting.batch = getattr(_collecting, "batch", None), batch
    try:
        for peer, (out, tensor) in enumerate(zip(outs, tensors, strict=True)):
            if peer == group.rank():
                copy_into(out, tensor)
            else:
                send(group, tensor, peer)
                recv(group, out, peer)
    finally:
        _collecting.batch = outer
    batch.run()


def all_to_all_single(
    group: ProcessGroup, out: Tensor, tensor: Tensor, out_sizes: list[int], in_sizes: list[int], sync_op: bool = True
) -> Task:
    """Send the rows of `tensor` in blocks of `in_sizes`, and receive rows in blocks of `out_sizes`, by rank."""
    with paddle.no_grad():
        outgoing = [part.contiguous() for part in _rows(tensor, in_sizes)]
        incoming = [paddle.empty(part.shape, dtype=out.dtype) for part in _rows(out, out_sizes)]
        task: Task = all_to_all(group, incoming, outgoing)
        copy_into(out, paddle.concat(incoming))
    return task


def all_to_all_tensor(group: ProcessGroup, out: Tensor, tensor: Tensor, sync_op: bool = True) -> Task:
    """Send and receive equal blocks of rows."""
    even = [tensor.shape[0] // group.size()] * group.size()
    return all_to_all_single(group, out, tensor, even, even)


def _rows(tensor: Tensor, sizes: list[int]) -> list[Tensor]:
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return [tensor[start : start + size] for start, size in zip(starts, sizes, strict=True)]


def start_coalescing(group: ProcessGroup) -> None:
    """Start to collect sends and receives."""
    _collecting.batch = Batch()


def end_coalescing(group: ProcessGroup, tasks: object = None) -> None:
    """Do the collected sends and receives."""
    batch, _collecting.batch = _collecting.batch, None
    batch.run()
