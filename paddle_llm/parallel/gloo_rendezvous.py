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
from dataclasses import dataclass
from typing import Any

from paddle.base import core

from paddle_llm.config.console import say
from paddle_llm.parallel import lifeline
from paddle_llm.parallel.gloo_p2p import Mailroom
from paddle_llm.parallel.gloo_timeout import job_timeout_ms, set_group_timeout

STORE_TIMEOUT_SECONDS = 300

_native_create = core.ProcessGroupGloo.create
_created: Counter[int] = Counter()
_infos: dict[int, GroupInfo] = {}
_mailroom: Mailroom | None = None


@dataclass(frozen=True)
class GroupInfo:
    """What a process group does not know of itself.

    Attributes:
        key: names the group in the whole job.
        global_ranks: of its members, in their order in the group.
        addresses: where the members' mailrooms listen.
        store, group: kept, for a served store must live as long as its group.
    """

    key: str
    global_ranks: tuple[int, ...]
    addresses: tuple[str, ...]
    store: Any
    group: Any


def create_group(store: Any, rank: int, world_size: int, group_id: int = 0) -> Any:
    """Replaces `ProcessGroupGloo.create`: same arguments, same result, its own rendezvous, the job's timeout."""
    lifeline.start(store)
    key = f"paddle_llm/gloo/{group_id}/{_created[group_id]}"
    _created[group_id] += 1
    own = _own_store(store, rank, key)
    own.set(f"member/{rank}", f"{global_rank()} {mailroom().address}".encode())
    members = [own.get(f"member/{peer}").decode().split() for peer in range(world_size)]
    group = _native_create(own, rank, world_size, group_id)
    if not set_group_timeout(group_id, rank, world_size, job_timeout_ms()):
        say("note: this build of Paddle keeps gloo's own limit: a rank that is 30 s late ends the job")
    ranks, addresses = zip(*members, strict=True)
    _infos[id(group)] = GroupInfo(key, tuple(int(r) for r in ranks), addresses, own, group)
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


def _own_store(job_store: Any, rank: int, key: str) -> Any:
    if rank == 0:
        # Zero workers: the constructor does not wait for them, so the port is served before it is published.
        port = free_port()
        own = core.TCPStore("127.0.0.1", port, True, 0, STORE_TIMEOUT_SECONDS)
        job_store.set(key, f"{own_host()}:{port}".encode())
        return own
    host, port_text = job_store.get(key).decode().rsplit(":", 1)
    return core.TCPStore(host, int(port_text), False, 0, STORE_TIMEOUT_SECONDS)
