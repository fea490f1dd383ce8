"""Connections between the processes that write a checkpoint: a gather of JSON without Paddle and without collectives.

The process of rank 0 listens, the others connect to it. When one of them ends, its connection closes, and all others end at
once: the checkpoint that they were writing cannot become complete.
"""

from __future__ import annotations

import json
import queue
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, BinaryIO

from paddle_llm.parallel.process.failure_detection import detect_dead_host

_CONNECT_SECONDS = 120.0  # until every process must have connected; a busy machine starts an interpreter slowly
_MAX_HELLO_BYTES = 4096


@dataclass(frozen=True)
class Address:
    """Where the process of rank 0 listens.

    Attributes:
        host: Name or address of its machine.
        port: TCP port.
        token: Text that only the processes of this job know.
    """

    host: str
    port: int
    token: str

    def to_json(self) -> dict[str, Any]:
        """Return an object of the arguments of this class."""
        return asdict(self)


class Peers:
    """The processes that write a checkpoint, one per rank.

    Args:
        rank: Rank of this process.
        world_size: Number of ranks.
        address: Where rank 0 listens.
        listener: Listening socket of rank 0; None on the others.
        on_loss: Function that is called, in another thread, with a message when another process has ended.

    Raises:
        OSError: If rank 0 cannot be reached.
    """

    def __init__(
        self,
        rank: int,
        world_size: int,
        address: Address,
        listener: socket.socket | None,
        on_loss: Callable[[str], None],
    ) -> None:
        self._rank, self._on_loss, self._token = rank, on_loss, address.token
        self._others = range(1, world_size) if rank == 0 else range(1)
        self._received: dict[int, queue.SimpleQueue[Any]] = {other: queue.SimpleQueue() for other in self._others}
        self._connections: dict[int, socket.socket] = {}
        if listener is not None:
            self._start(self._accept, listener)
        elif rank:
            connection = socket.create_connection((address.host, address.port), _CONNECT_SECONDS)
            connection.settimeout(None)
            self._connections[0] = connection
            _send(connection, {"token": address.token, "rank": rank})
            self._start(self._receive, 0, connection, connection.makefile("rb"))

    def gather(self, mine: Any) -> list[Any]:
        """Return the JSON of every rank, by rank. All processes call it in the same order."""
        if self._rank:
            _send(self._connections[0], mine)
            return list(self._received[0].get())
        everyone = [mine, *(self._received[other].get() for other in self._others)]
        for connection in self._connections.values():
            _send(connection, everyone)
        return everyone

    def _accept(self, listener: socket.socket) -> None:
        threading.Timer(_CONNECT_SECONDS, self._check_connected).start()
        while True:
            connection, _ = listener.accept()
            self._start(self._welcome, connection)

    def _check_connected(self) -> None:
        absent = sorted(self._received.keys() - self._connections.keys())
        if absent:
            self._on_loss(f"the process that writes checkpoints for rank {absent[0]} does not answer")

    def _welcome(self, connection: socket.socket) -> None:
        lines = connection.makefile("rb")
        try:
            hello = json.loads(lines.readline(_MAX_HELLO_BYTES))
            rank = hello["rank"] if hello["token"] == self._token else None
        except (OSError, ValueError, TypeError, KeyError):
            rank = None
        if rank not in self._received:  # not a process of this job
            connection.close()
            return
        self._connections[rank] = connection
        self._receive(rank, connection, lines)

    def _receive(self, other: int, connection: socket.socket, lines: BinaryIO) -> None:
        detect_dead_host(connection)
        with suppress(OSError, ValueError):  # as if it had been closed
            for line in lines:
                self._received[other].put(json.loads(line))
        self._on_loss(f"the process that writes checkpoints for rank {other} has ended")

    @staticmethod
    def _start(target: Callable[..., None], *args: Any) -> None:
        threading.Thread(target=target, args=args, daemon=True).start()


def _send(connection: socket.socket, value: Any) -> None:
    connection.sendall(json.dumps(value).encode() + b"\n")
