"""The rendezvous of the ranks of a new gloo group.

Paddle 3.3.1: `ProcessGroupGloo` publishes addresses under the keys "0", "1", ... of the job's only store, so two groups
read each other's stale addresses ("Connection refused", or a timeout). Here every group has its own store: its first
rank serves the store and publishes its address in the job's store, and the other ranks connect to it.
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

from paddle.base.core import ProcessGroup, ProcessGroupGloo, TCPStore

from paddle_llm.core.console import say
from paddle_llm.parallel.gloo.interface import own_host
from paddle_llm.parallel.gloo.p2p import ConnectionServer
from paddle_llm.parallel.gloo.timeout import job_timeout_ms, set_group_timeout
from paddle_llm.parallel.process import failure_detection
from paddle_llm.parallel.process.store import Store

STORE_TIMEOUT_SECONDS = 300

_native_create: Callable[..., ProcessGroup] = ProcessGroupGloo.create
_created: Counter[int] = Counter()  # groups created so far, by Paddle's number
_infos: dict[int, GroupInfo] = {}
_server: ConnectionServer | None = None


class GroupInfo:
    """Facts about a process group that the group itself does not provide.

    Attributes:
        key: Name of the group, unique in the job.
    """

    def __init__(self, key: str, store: Store, group: ProcessGroup):
        self.key = key
        self._store, self._group = store, group  # kept: a served store must live as long as its group
        self._members: dict[int, tuple[int, str]] = {}
        self._lock = threading.Lock()  # the client of a store must not be used by two threads at once

    def member(self, rank: int) -> tuple[int, str]:
        """Return the global rank of a member and the address of its connection server."""
        with self._lock:
            if rank not in self._members:
                global_text, address = self._store.get(f"member/{rank}").decode().split()
                self._members[rank] = int(global_text), address
            return self._members[rank]


def create_group(store: Store, rank: int, world_size: int, group_id: int = 0) -> ProcessGroup:
    """Create a group; replaces `ProcessGroupGloo.create`, with its own rendezvous and the job's timeout.

    Args:
        store: Store of the job.
        rank: Rank of this process in the group.
        world_size: Number of ranks of the group.
        group_id: Paddle's number of the group.
    """
    if not _infos:
        _disable_delay(_job_store_port())
        failure_detection.start(store)
    key = f"paddle_llm/gloo/{group_id}/{_created[group_id]}"
    _created[group_id] += 1
    own = _own_store(store, rank, key)
    own.set(f"member/{rank}", f"{global_rank()} {connection_server().address}".encode())
    group = _native_create(own, rank, world_size, group_id)
    if not set_group_timeout(group_id, rank, world_size, job_timeout_ms()):
        say(
            "gloo's timeout of 30 s cannot be changed in this build of Paddle. A rank that is 30 s late for a collective ends the job."
        )
    _infos[id(group)] = GroupInfo(key, own, group)
    return group


def info_of(group: ProcessGroup) -> GroupInfo:
    """Return the facts about a process group from `create_group`."""
    return _infos[id(group)]


def connection_server() -> ConnectionServer:
    """Return the connection server of this process."""
    global _server
    if _server is None:
        _server = ConnectionServer(own_host())
    return _server


def global_rank() -> int:
    """Return the rank of this process in the job."""
    return int(os.environ.get("PADDLE_TRAINER_ID", "0"))


def free_port() -> int:
    """Return a free port below the range from which the system takes ports for outgoing connections."""
    chooser = random.SystemRandom()
    while True:
        port = chooser.randrange(10000, 32000)
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return port


def _own_store(job_store: Store, rank: int, key: str) -> Store:
    if rank == 0:
        # With zero workers the constructor does not wait for them, so the port is open before it is published.
        port = free_port()
        own: Any = TCPStore("127.0.0.1", port, True, 0, STORE_TIMEOUT_SECONDS)
        _disable_delay(port)
        job_store.set(key, f"{own_host()}:{port}".encode())
        return own
    host, port_text = job_store.get(key).decode().rsplit(":", 1)
    own = TCPStore(host, int(port_text), False, 0, STORE_TIMEOUT_SECONDS)
    _disable_delay(int(port_text))
    return own


def _job_store_port() -> int:
    """Return the port of Paddle's own store, by the rules of `init_parallel_env`."""
    if os.environ.get("MASTER_ADDR") and os.environ.get("MASTER_PORT"):
        return int(os.environ["MASTER_PORT"])
    address = os.environ.get("PADDLE_MASTER") or os.environ.get("PADDLE_TRAINER_ENDPOINTS", "").split(",")[0]
    return int(address.rsplit(":", 1)[-1] or 0)


def _disable_delay(port: int) -> None:
    """Let the clients of a store send small messages at once.

    A client writes a command in several pieces and then waits. The system delays the second piece by 40 ms, dozens of
    times per group.

    Args:
        port: Port of the store.
    """
    folder = "/proc/self/fd"
    if not os.path.isdir(folder):
        return
    for name in os.listdir(folder):
        with contextlib.suppress(OSError):
            if not os.readlink(f"{folder}/{name}").startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(name))) as connection:
                _set_no_delay(connection, port)


def _set_no_delay(connection: socket.socket, port: int) -> None:
    if connection.family in (socket.AF_INET, socket.AF_INET6) and connection.getpeername()[1] == port:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
