"""Point-to-point transfers between CPU ranks: one TCP connection for each direction between two members of a group.

Not gloo's own: Paddle 3.3.1 numbers the operations of a process group, each rank for itself, and matches a send with a
receive by that number. With more than two pipeline stages the numbers differ and both ends wait for ever.
"""

from __future__ import annotations

import json
import socket
import struct
import threading
import time

import paddle

from paddle_llm.parallel.gloo.dtypes import memory_of
from paddle_llm.parallel.process import failure_detection as lifeline

_HEADER = struct.Struct("<Q")  # bytes that follow
_LOOK_UP_SECONDS = 0.5


class TransferSizeError(RuntimeError):
    """What the peer sent is not what this rank expected: the two ranks are not at the same place of the program."""


class Mailroom:
    """Where this process receives connections, and how it finds those of others. One for the process."""

    def __init__(self, host: str):
        listener = socket.socket()
        listener.bind(("127.0.0.1" if host in ("127.0.0.1", "localhost") else "", 0))
        listener.listen(1024)
        self.address = f"{host}:{listener.getsockname()[1]}"
        self._arrived: dict[tuple[str, int], socket.socket] = {}
        self._arrival = threading.Condition()
        threading.Thread(target=self._accept, args=(listener,), name="mailroom", daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            line = listener.accept()[0]
            line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            hello = b""
            while not hello.endswith(b"\n"):
                piece = line.recv(1)
                if not piece:
                    break
                hello += piece
            else:
                group, source = json.loads(hello)
                with self._arrival:
                    self._arrived[group, source] = line
                    self._arrival.notify_all()

    def connect(self, address: str, group: str, own_rank: int) -> socket.socket:
        """The connection through which this rank sends to the member that listens at `address`."""
        host, port = address.rsplit(":", 1)
        line = socket.create_connection((host, int(port)), timeout=lifeline.PEER_TIMEOUT_SECONDS)
        line.settimeout(None)
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        line.sendall(json.dumps([group, own_rank]).encode() + b"\n")
        return line

    def connection_from(self, group: str, source: int, timeout: float) -> socket.socket:
        """The connection through which member `source` sends; waits until it has made it."""
        deadline = time.monotonic() + timeout
        with self._arrival:
            while not self._arrival.wait_for(lambda: (group, source) in self._arrived, _LOOK_UP_SECONDS):
                lifeline.check()
                if time.monotonic() > deadline:
                    raise TimeoutError(f"nothing came from member {source} of group {group} within {timeout:.0f} s")
            return self._arrived.pop((group, source))


def send_tensor(line: socket.socket, tensor: paddle.Tensor) -> None:
    """Send the bytes of a contiguous CPU tensor, whatever its type."""
    memory = memory_of(tensor)
    line.sendall(_HEADER.pack(len(memory)))
    line.sendall(memory)


def receive_tensor(line: socket.socket, tensor: paddle.Tensor) -> None:
    """Receive into a contiguous CPU tensor.

    Raises:
        TransferSizeError: when the peer sent another number of bytes.
    """
    memory = memory_of(tensor)
    header = memoryview(bytearray(_HEADER.size))
    _fill(line, header)
    (size,) = _HEADER.unpack(header)
    if size != len(memory):
        raise TransferSizeError(
            f"{size} bytes came where {len(memory)} were expected ({list(tensor.shape)} of {tensor.dtype})"
        )
    _fill(line, memory)


def _fill(line: socket.socket, memory: memoryview) -> None:
    while len(memory):
        count = line.recv_into(memory)
        if not count:
            raise ConnectionResetError("the connection was closed")
        memory = memory[count:]
