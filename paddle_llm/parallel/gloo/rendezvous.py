"""How the ranks of a new gloo group find each other.

Paddle 3.3.1: `ProcessGroupGloo` meets its peers under the keys "0", "1", ... of the job's one store, so two groups read
each other's stale addresses ("Connection refused", or a time-out). Here every group has a store of its own: its first
rank serves one and publishes where in the job's store, the others connect to that.
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
import threading
from collections import Counter
from typing import Any

from paddle.base import core

from paddle_llm.core.console import say
from paddle_llm.parallel.gloo.interface import own_host
from paddle_llm.parallel.gloo.p2p import Mailroom
from paddle_llm.parallel.gloo.timeout import job_timeout_ms, set_group_timeout
from paddle_llm.parallel.process import failure_detection as lifeline

STORE_TIMEOUT_SECONDS = 300

_native_create = core.ProcessGroupGloo.create
_created: Counter[int] = Counter()
_infos: dict[int, GroupInfo] = {}
_mailroom: Mailroom | None = None


class GroupInfo:
    """What a process group does not know of itself.

    Attributes:
        key: names the group in the whole job.
    """

    def __init__(self, key: str, store: Any, group: Any):
        self.key = key
        self._store, self._group = store, group  # kept: a served store must live as long as its group
        self._members: dict[int, tuple[int, str]] = {}
        self._lock = threading.Lock()  # a store's client is not for two threads at once

    def member(self, rank: int) -> tuple[int, str]:
        """Global rank of a member, and the address of its mailroom."""
        with self._lock:
            if rank not in self._members:
                global_text, address = self._store.get(f"member/{rank}").decode().split()
                self._members[rank] = int(global_text), address
            return self._members[rank]


def create_group(store: Any, rank: int, world_size: int, group_id: int = 0) -> Any:
    """Replaces `ProcessGroupGloo.create`: same arguments, same result, its own rendezvous, the job's timeout."""
    if not _infos:
        _without_delay(_job_store_port())
        lifeline.start(store)
    key = f"paddle_llm/gloo/{group_id}/{_created[group_id]}"
    _created[group_id] += 1
    own = _own_store(store, rank, key)
    own.set(f"member/{rank}", f"{global_rank()} {mailroom().address}".encode())
    group = _native_create(own, rank, world_size, group_id)
    if not set_group_timeout(group_id, rank, world_size, job_timeout_ms()):
        say("note: this build of Paddle keeps gloo's own limit: a rank that is 30 s late ends the job")
    _infos[id(group)] = GroupInfo(key, own, group)
    return group


def info_of(group: Any) -> GroupInfo:
    """What was agreed when the group was made; `group` is a process group that `create_group` returned."""
    return _infos[id(group)]


def mailroom() -> Mailroom:
    """This process's end of all point-to-point connections."""
    global _mailroom
    if _mailroom is None:
        _mailroom = Mailroom(own_host())
    return _mailroom


def global_rank() -> int:
    return int(os.environ.get("PADDLE_TRAINER_ID", "0"))


def free_port() -> int:
    """A port nobody listens on, below the range from which the system takes ports for outgoing connections."""
    chooser = random.SystemRandom()
    while True:
        port = chooser.randrange(10000, 32000)
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return port


def _own_store(job_store: Any, rank: int, key: str) -> Any:
    if rank == 0:
        # Zero workers: the constructor does not wait for them, so the port is served before it is published.
        port = free_port()
        own = core.TCPStore("127.0.0.1", port, True, 0, STORE_TIMEOUT_SECONDS)
        _without_delay(port)
        job_store.set(key, f"{own_host()}:{port}".encode())
        return own
    host, port_text = job_store.get(key).decode().rsplit(":", 1)
    own = core.TCPStore(host, int(port_text), False, 0, STORE_TIMEOUT_SECONDS)
    _without_delay(int(port_text))
    return own


def _job_store_port() -> int:
    """Where Paddle's own store listens, by the rules of `init_parallel_env`."""
    if os.environ.get("MASTER_ADDR") and os.environ.get("MASTER_PORT"):
        return int(os.environ["MASTER_PORT"])
    address = os.environ.get("PADDLE_MASTER") or os.environ.get("PADDLE_TRAINER_ENDPOINTS", "").split(",")[0]
    return int(address.rsplit(":", 1)[-1] or 0)


def _without_delay(port: int) -> None:
    """Let the store's client send small messages at once.

    It writes a command in pieces and then waits; the system holds the second piece back for 40 ms, dozens of times for
    each group.
    """
    folder = "/proc/self/fd"
    if not os.path.isdir(folder):
        return
    for name in os.listdir(folder):
        with contextlib.suppress(OSError):
            if not os.readlink(f"{folder}/{name}").startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(name))) as line:
                _set_no_delay(line, port)


def _set_no_delay(line: socket.socket, port: int) -> None:
    if line.family in (socket.AF_INET, socket.AF_INET6) and line.getpeername()[1] == port:
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
