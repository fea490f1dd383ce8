"""Machines that register for a start: real sockets, each machine a thread."""

from __future__ import annotations

import json
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from paddle_llm.core.errors import UserError
from paddle_llm.training.launch import rendezvous
from paddle_llm.training.launch.rendezvous import REJOIN_VARIABLE, Meeting, Request, meet, rejoin_seconds

JOB = {"machines": 3, "min_nodes": 1}


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def none_can(number: int) -> tuple[int, str]:
    return 0, f"{number} came"


def serve(port: int, waiting: list[Request | bytes], choose=none_can, own: Request | None = None, nodes: int = 3):
    """Return the answers for the master's machine and for others that are connected before its time is over.

    All have sent their registration when the master begins to read, and its time is over at once: what is counted does not
    depend on the speed of a thread.
    """
    listener = rendezvous._listen("127.0.0.1", port)
    assert listener is not None
    connections = []
    with listener:
        for request in waiting:
            connection = socket.create_connection(("127.0.0.1", port), timeout=30)
            if isinstance(request, Request):
                text = {"format": rendezvous._FORMAT, "job": request.job, "node_rank": request.node_rank}
                request = json.dumps(text).encode() + b"\n"
            connection.sendall(request)
            connections.append(connection)
        mine = rendezvous._serve(listener, own or Request(JOB), nodes, 1e-6, choose)
    answers = []
    for connection in connections:
        with connection, connection.makefile("rb") as file:
            line = file.readline()
        answers.append({k: v for k, v in json.loads(line).items() if k != "format"} if line else None)
    return mine, answers


def test_all_machines_start_in_the_order_of_their_numbers():
    """Threads that begin in any order: those without a listener yet try again."""
    master = f"127.0.0.1:{free_port()}"

    def machine(rank: int) -> Meeting:
        return meet(master, Request(JOB, rank), 3, is_local=rank == 0, seconds=None, choose=none_can)

    with ThreadPoolExecutor(3) as threads:
        assert list(threads.map(machine, (2, 0, 1))) == [Meeting(3, 2), Meeting(3, 0), Meeting(3, 1)]


def test_without_numbers_the_masters_machine_is_the_first():
    mine, others = serve(free_port(), [Request(JOB), Request(JOB)])
    assert mine == Meeting(3, 0)
    assert [one["rank"] for one in others] == [1, 2]


def test_after_the_time_the_machines_that_came_are_counted():
    seen = []

    def choose(number: int) -> tuple[int, str]:
        seen.append(number)
        return number, "of 3"

    mine, others = serve(free_port(), [Request(JOB, 2)], choose, Request(JOB, 0))
    assert seen == [2] and mine == Meeting(2, 0)
    assert others == [{"nodes": 2, "rank": 1, "reason": ""}]


def test_a_machine_that_is_not_used_learns_why():
    mine, others = serve(
        free_port(), [Request(JOB), Request(JOB)], lambda number: (2, "3 do not divide the batch"), nodes=4
    )
    assert mine == Meeting(2, 0)
    assert others[0] == {"nodes": 2, "rank": 1, "reason": ""}
    assert others[1] == {"nodes": 2, "rank": None, "reason": "3 do not divide the batch"}


def test_too_few_machines_do_not_start():
    mine, others = serve(free_port(), [Request(JOB)])
    assert mine == Meeting(0, None, "2 came") and others == [{"nodes": 0, "rank": None, "reason": "2 came"}]


@pytest.mark.parametrize(
    ("request_of_other", "reason"),
    [
        (Request({**JOB, "min_nodes": 2}), "other settings than the master: min_nodes 2 instead of 1"),
        (Request(JOB, 0), "another machine has the number 0, too"),
    ],
)
def test_a_machine_with_other_settings_is_refused_and_not_counted(request_of_other, reason):
    mine, (answer,) = serve(free_port(), [request_of_other], own=Request(JOB, 0))
    assert mine.reason == "1 came" and reason in answer["reason"] and answer["rank"] is None


def test_other_programs_and_machines_that_have_gone_are_not_counted():
    mine, answers = serve(free_port(), [b"GET / HTTP/1.1\r\n\r\n", b"{}\n", b"[1]\n", Request(JOB)])
    assert mine.reason == "2 came" and answers[:3] == [None, None, None]
    port = free_port()
    listener = rendezvous._listen("127.0.0.1", port)
    with listener:
        text = json.dumps({"format": rendezvous._FORMAT, "job": JOB, "node_rank": None}).encode() + b"\n"
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(text)
        assert rendezvous._serve(listener, Request(JOB), 3, 1e-6, none_can).reason == "1 came"


def test_a_machine_waits_while_the_port_is_used_by_the_launcher(monkeypatch):
    """Paddle's launcher has an HTTP server on the port during the training."""
    asked = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args):
            asked.set()

    port = free_port()
    server = HTTPServer(("127.0.0.1", port), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()

    def machine(rank: int) -> Meeting:
        return meet(f"127.0.0.1:{port}", Request(JOB, rank), 2, is_local=rank == 0, seconds=None, choose=none_can)

    with ThreadPoolExecutor(2) as threads:
        late = threads.submit(machine, 1)
        assert asked.wait(60) and not late.done()
        server.shutdown()
        server.server_close()
        thread.join()
        assert threads.submit(machine, 0).result(60) == Meeting(2, 0) and late.result(60) == Meeting(2, 1)


def test_without_a_master_a_machine_gives_up():
    found = meet(f"127.0.0.1:{free_port()}", Request(JOB), 3, is_local=False, seconds=0.01, choose=none_can)
    assert found.rank is None and "has not answered" in found.reason


@pytest.mark.parametrize("text", ["", "zero", "0", "-1"])
def test_the_time_must_be_positive(text, monkeypatch):
    monkeypatch.setenv(REJOIN_VARIABLE, text)
    with pytest.raises(UserError, match="is not a positive number"):
        rejoin_seconds()
