"""How the ranks of a new gloo group find each other.

Paddle 3.3.1: `ProcessGroupGloo` meets its peers under the keys "0", "1", ... of the job's one store, so two groups read
each other's stale addresses ("Connection refused", or a time-out). Here every group has a store of its own: its first
rank serves one and publishes where in the job's store, the others connect to that.
"""

from __future__ import annotations

import os
import random
import socket
from collections import Counter
from typing import Any

from paddle.base import core

from paddle_llm.config.console import say
from paddle_llm.parallel import lifeline
from paddle_llm.parallel.gloo_timeout import job_timeout_ms, set_group_timeout

STORE_TIMEOUT_SECONDS = 300

_native_create = core.ProcessGroupGloo.create
_created: Counter[int] = Counter()
_stores: list[Any] = []  # the served ones must outlive their groups
_members: dict[int, tuple[int, ...]] = {}


def create_group(store: Any, rank: int, world_size: int, group_id: int = 0) -> Any:
    """Replaces `ProcessGroupGloo.create`: same arguments, same result, its own rendezvous, the job's timeout."""
    lifeline.start(store)
    own = _own_store(store, rank, world_size, f"paddle_llm/gloo/{group_id}/{_created[group_id]}")
    _created[group_id] += 1
    own.set(f"member/{rank}", str(global_rank()).encode())
    members = tuple(int(own.get(f"member/{peer}")) for peer in range(world_size))
    group = _native_create(own, rank, world_size, group_id)
    if not set_group_timeout(group_id, rank, world_size, job_timeout_ms()):
        say("note: this build of Paddle keeps gloo's own limit: a rank that is 30 s late ends the job")
    _members[id(group)] = members
    _stores.append((own, group))
    return group


def members_of(group: Any) -> tuple[int, ...]:
    """Global ranks of a group's members, in their order in the group."""
    return _members.get(id(group), ())


def global_rank() -> int:
    return int(os.environ.get("PADDLE_TRAINER_ID", "0"))


def own_host() -> str:
    """The name under which other ranks reach this one."""
    return os.environ.get("PADDLE_CURRENT_ENDPOINT", "127.0.0.1:0").rsplit(":", 1)[0] or "127.0.0.1"


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


def _own_store(job_store: Any, rank: int, world_size: int, key: str) -> Any:
    if rank == 0:
        # Zero workers: the constructor does not wait for them, so the port is served before it is published.
        port = free_port()
        own = core.TCPStore("127.0.0.1", port, True, 0, STORE_TIMEOUT_SECONDS)
        job_store.set(key, f"{own_host()}:{port}".encode())
        return own
    host, port_text = job_store.get(key).decode().rsplit(":", 1)
    return core.TCPStore(host, int(port_text), False, 0, STORE_TIMEOUT_SECONDS)
