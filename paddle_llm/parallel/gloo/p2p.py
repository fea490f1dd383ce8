"""Point-to-point transfers between CPU ranks: one TCP connection per direction between two members of a group.

gloo's own transfers are not used. Paddle 3.3.1 numbers the operations of a process group on each rank, and matches a
send with a receive by that number. With more than two pipeline stages the numbers differ, and both ranks wait forever.
"""

from __future__ import annotations

import json
import socket
import struct
import threading
import time

import paddle

from paddle_llm.parallel.gloo.dtypes import memory_of
from paddle_llm.parallel.process import failure_detection

_HEADER = struct.Struct("<Q")  # number of bytes that follow
_CHECK_SECONDS = 0.5  # interval at which a waiting rank checks for lost ranks


class TransferSizeError(RuntimeError):
    """A peer sent another number of bytes than expected: the two ranks execute different parts of the program."""


class ConnectionServer:
    """Accepts the connections of other ranks to this process, and connects to theirs. One per process.

    Attributes:
        address: "host:port" at which this process accepts connections.
    """

    def __init__(self, host: str):
        listener = socket.socket()
        listener.bind(("127.0.0.1" if host in ("127.0.0.1", "localhost") else "", 0))
        listener.listen(1024)
        self.address = f"{host}:{listener.getsockname()[1]}"
        self._arrived: dict[tuple[str, int], socket.socket] = {}
        self._arrival = threading.Condition()
        threading.Thread(target=self._accept, args=(listener,), name="connection server", daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            connection = listener.accept()[0]
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            announcement = b""
            while not announcement.endswith(b"\n"):
                piece = connection.recv(1)
                if not piece:
                    break
                announcement += piece
            else:
                group, source = json.loads(announcement)
                with self._arrival:
                    self._arrived[group, source] = connection
                    self._arrival.notify_all()

    def connect(self, address: str, group: str, own_rank: int) -> socket.socket:
        """Return a connection through which this rank sends to a member of a group.

        Args:
            address: Address of the member.
            group: Key of the group.
            own_rank: Rank of this process in the group.
        """
        host, port = address.rsplit(":", 1)
        connection = socket.create_connection((host, int(port)), timeout=failure_detection.PEER_TIMEOUT_SECONDS)
        connection.settimeout(None)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(json.dumps([group, own_rank]).encode() + b"\n")
        return connection

    def connection_from(self, group: str, source: int, timeout: float) -> socket.socket:
        """Wait for the connection through which a member of a group sends to this rank, and return it.

        Args:
            group: Key of the group.
            source: Rank of the member in the group.
            timeout: Seconds to wait.

        Raises:
            PeerLostError: If a rank of the job is lost meanwhile.
            TimeoutError: If the member does not connect.
        """
        deadline = time.monotonic() + timeout
        with self._arrival:
            while not self._arrival.wait_for(lambda: (group, source) in self._arrived, _CHECK_SECONDS):
                failure_detection.raise_if_lost()
                if time.monotonic() > deadline:
                    raise TimeoutError(f"member {source} of group {group} has not connected within {timeout:.0f} s")
            return self._arrived.pop((group, source))


def send_tensor(connection: socket.socket, tensor: paddle.Tensor) -> None:
    """Send the bytes of a contiguous CPU tensor of any type."""
    memory = memory_of(tensor)
    connection.sendall(_HEADER.pack(len(memory)))
    connection.sendall(memory)


def receive_tensor(connection: socket.socket, tensor: paddle.Tensor) -> None:
    """Receive into a contiguous CPU tensor.

    Raises:
        TransferSizeError: If the peer sent another number of bytes.
    """
    memory = memory_of(tensor)
    header = memoryview(bytearray(_HEADER.size))
    _fill(connection, header)
    (size,) = _HEADER.unpack(header)
    if size != len(memory):
        raise TransferSizeError(
            f"received {size} bytes instead of {len(memory)} ({list(tensor.shape)} of {tensor.dtype})"
        )
    _fill(connection, memory)


def _fill(connection: socket.socket, memory: memoryview) -> None:
    while len(memory):
        count = connection.recv_into(memory)
        if not count:
            raise ConnectionResetError("the connection was closed")
        memory = memory[count:]
