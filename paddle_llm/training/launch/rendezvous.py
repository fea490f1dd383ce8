"""Agree which machines start a job: those that register at the master within a time.

The process that starts the launcher on the master's machine listens on the master's port, before the launcher uses it. The
others connect. A message is one line of JSON. There is no other coordinator: the master's machine must remain.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import selectors
import socket
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from paddle_llm.core.errors import UserError

REJOIN_VARIABLE = "PADDLE_LLM_REJOIN_SECONDS"
# After the first machine has noticed a failure, the others need up to 75 s to notice it and some more to end.
_REJOIN_SECONDS = 120.0
_RETRY_SECONDS = 0.5
_FORMAT = "paddle_llm.rendezvous.1"


@dataclass(frozen=True)
class Meeting:
    """What a machine needs to know for a start.

    Attributes:
        nodes: Number of machines that start.
        rank: Number of this machine; None if it is not used.
        reason: Why the job does not start, or why this machine is not used; "" otherwise.
    """

    nodes: int
    rank: int | None = None
    reason: str = ""


@dataclass(frozen=True)
class Request:
    """A machine that registers.

    Attributes:
        job: Description of the job, which must be the same on all machines.
        node_rank: Number that the user has given the machine; None without one.
    """

    job: dict[str, Any]
    node_rank: int | None = None


@dataclass
class _Registered:
    """A registered machine; the connection is None for the master's own."""

    request: Request
    connection: socket.socket | None = None
    buffer: bytes = field(default=b"", repr=False)


def rejoin_seconds() -> float:
    """Return the time in which machines register again after a failure.

    Raises:
        UserError: If the variable is not a positive number.
    """
    text = os.environ.get(REJOIN_VARIABLE, str(_REJOIN_SECONDS))
    with contextlib.suppress(ValueError):
        if (seconds := float(text)) > 0:
            return seconds
    raise UserError(
        f"{REJOIN_VARIABLE} = {text} is not a positive number. Give seconds, such as {_REJOIN_SECONDS:.0f}."
    )


def meet(
    master: str,
    request: Request,
    nodes: int,
    *,
    is_local: bool,
    seconds: float | None,
    choose: Callable[[int], tuple[int, str]],
) -> Meeting:
    """Register this machine and return who starts.

    Args:
        master: IP:PORT of the master.
        request: This machine.
        nodes: Number of machines of the whole job; the job starts as soon as all have registered.
        is_local: Whether the master's address is one of this machine, so that it may listen.
        seconds: Time in which machines can register, from when the master listens; None to wait for all. A machine that
            gets no answer from the master for twice this time gives up.
        choose: Function of the number of registered machines that returns how many of them start (0 for none) and why not
            more; called where the master listens.
    """
    host, port = master.rsplit(":", 1)
    deadline = None if seconds is None else time.monotonic() + 2 * seconds
    while True:
        listener = _listen(host, int(port)) if is_local else None
        if listener is not None:
            with listener:
                return _serve(listener, request, nodes, seconds, choose)
        answer = _ask(host, int(port), request, None if seconds is None else 3 * seconds)
        if answer is not None:
            return answer
        if deadline is not None and time.monotonic() > deadline:
            return Meeting(0, reason=f"the master {master} has not answered for {2 * (seconds or 0):.0f} s")
        time.sleep(_RETRY_SECONDS)


def _listen(host: str, port: int) -> socket.socket | None:
    """Return a listening socket; None if another process of this machine listens on the port."""
    listener = socket.socket()
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(128)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            return None
        raise UserError(f"--master {host}:{port} cannot be used: {error.strerror}. Give another port.") from error
    return listener


def _serve(
    listener: socket.socket,
    own: Request,
    nodes: int,
    seconds: float | None,
    choose: Callable[[int], tuple[int, str]],
) -> Meeting:
    """Collect the machines until all have registered or the time is over, then answer them."""
    deadline = None if seconds is None else time.monotonic() + seconds
    registered = [_Registered(own)]
    waiting: dict[socket.socket, _Registered] = {}
    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        while len(registered) < nodes:
            is_over = deadline is not None and time.monotonic() >= deadline
            events = selector.select(timeout=0 if is_over else _RETRY_SECONDS)
            if is_over and not events:  # what has arrived in time is read first
                break
            for key, _ in events:
                if key.fileobj is listener:
                    connection = listener.accept()[0]
                    waiting[connection] = _Registered(own, connection)
                    selector.register(connection, selectors.EVENT_READ)
                    continue
                assert isinstance(key.fileobj, socket.socket)
                _receive(waiting[key.fileobj], registered, own, selector)
    return _answer(registered, nodes, choose)


def _receive(one: _Registered, registered: list[_Registered], own: Request, selector: selectors.BaseSelector) -> None:
    """Read from a connection: a registration, the end of a machine that has registered, or something else."""
    connection = one.connection
    assert connection is not None
    data = b""
    with contextlib.suppress(OSError):
        data = connection.recv(65536)
    one.buffer += data
    if data and b"\n" not in one.buffer:
        return
    try:
        message = json.loads(one.buffer) if data and one not in registered else {}
        if message.get("format") == _FORMAT:
            one.request = Request(message["job"], message["node_rank"])
            problem = _problem(one.request, own, registered)
            if not problem:
                registered.append(one)
                return
            _send(connection, Meeting(0, reason=problem))
    except (ValueError, KeyError, AttributeError):  # a port scan, for example
        pass
    selector.unregister(connection)
    connection.close()
    if one in registered:
        registered.remove(one)


def _problem(request: Request, own: Request, registered: list[_Registered]) -> str:
    """Return why a machine cannot register; "" if it can."""
    if request.job != own.job:
        differing = [
            f"{key} {request.job.get(key)} instead of {value}"
            for key, value in own.job.items()
            if request.job.get(key) != value
        ]
        return f"this machine was started with other settings than the master: {', '.join(differing)}"
    if request.node_rank is not None and request.node_rank in [one.request.node_rank for one in registered]:
        return f"another machine has the number {request.node_rank}, too"
    return ""


def _answer(registered: list[_Registered], nodes: int, choose: Callable[[int], tuple[int, str]]) -> Meeting:
    """Choose the machines, answer all of them, and return the answer for this one."""
    number = len(registered)
    used, reason = (nodes, "") if number >= nodes else choose(number)
    order = sorted(registered, key=lambda one: (one.request.node_rank is None, one.request.node_rank or 0))
    mine = Meeting(0, reason=reason)
    for rank, one in enumerate(order):
        found = Meeting(used, rank if rank < used else None, "" if rank < used else reason)
        if one.connection is None:
            mine = found
        else:
            with contextlib.suppress(OSError):
                _send(one.connection, found)
            one.connection.close()
    return mine


def _send(connection: socket.socket, meeting: Meeting) -> None:
    connection.sendall(json.dumps({"format": _FORMAT, **asdict(meeting)}).encode() + b"\n")


def _ask(host: str, port: int, request: Request, seconds: float | None) -> Meeting | None:
    """Register at the master and wait for its answer; None if it does not listen or another program does."""
    try:
        with socket.create_connection((host, port), timeout=10) as connection:
            connection.sendall(json.dumps({"format": _FORMAT, **asdict(request)}).encode() + b"\n")
            connection.settimeout(seconds)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            received = b""
            while data := connection.recv(65536):
                received += data
        message = json.loads(received)
        return Meeting(message["nodes"], message["rank"], message["reason"]) if message["format"] == _FORMAT else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
