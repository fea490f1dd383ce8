"""Detect lost ranks: a rank that dies is named by all the others instead of leaving them to hang.

Every rank keeps a connection to rank 0. The system closes it at the moment a process ends, however it ends, and gives
it up when the other host does not answer any more. Rank 0 reports a loss to the others. A rank that ends in good order
reports that first. A loss that gloo notices becomes a `PeerLostError`; a rank that waits for something else is ended.

On a CPU a rank whose process exists but sends nothing for `PEER_TIMEOUT_SECONDS` is lost, too. Not so on a GPU: there
Python stands still for minutes while kernels are compiled or NCCL connects its first ranks.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import json
import os
import selectors
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from paddle_llm.core.errors import EXIT_PEER_LOST
from paddle_llm.parallel.gloo.interface import own_host

PEER_TIMEOUT_SECONDS = float(os.environ.get("PADDLE_LLM_PEER_TIMEOUT", "60"))
HEARTBEAT_SECONDS = min(5.0, PEER_TIMEOUT_SECONDS / 4)
GRACE_SECONDS = 10.0
_KEY = "paddle_llm/lifeline"


class PeerLostError(RuntimeError):
    """Another rank of the job is gone, so that this one cannot go on.

    Attributes:
        rank: the rank that is gone (None when it could not be found out).
    """

    def __init__(self, rank: int | None, why: str):
        self.rank = rank
        super().__init__(f"rank {rank} is gone ({why})" if rank is not None else f"a rank is gone ({why})")

    def __reduce__(self) -> Any:
        return _restore, (self.rank, self.args[0])


def _restore(rank: int | None, message: str) -> PeerLostError:
    error = PeerLostError(rank, "")
    error.args = (message,)
    return error


_current: _Lifeline | None = None
_raised: PeerLostError | None = None  # the last one on this rank: Paddle may raise another error in its place


def start(store: Any, silence: float | None = PEER_TIMEOUT_SECONDS) -> None:
    """Connect this rank, if it is not connected yet.

    Args:
        store: TCPStore of the job, through which rank 0 publishes its address.
        silence: Seconds without a message after which a connected rank is lost, or None for no limit.
    """
    global _current
    if _current is None and int(os.environ.get("PADDLE_TRAINERS_NUM", "1")) > 1:
        _current = _Lifeline(store, silence)


def start_on_gpus() -> None:
    """Connect this rank of a job on GPUs. Called after `fleet.init`; jobs on CPUs are connected by their first group."""
    from paddle.distributed import collective

    if collective._default_store is not None:
        start(collective._default_store, silence=None)


def check() -> None:
    """Raise PeerLostError when a rank is known to be lost; for loops that wait."""
    if _current is not None and _current.lost is not None:
        raise _remembered(PeerLostError(*_current.lost))


@contextlib.contextmanager
def naming_the_lost(suspect: int | None = None) -> Iterator[None]:
    """Turn an error about a closed connection into a PeerLostError that says whose it was.

    Args:
        suspect: the global rank at the other end, where there is one; blamed when nothing better is known.
    """
    try:
        check()
        yield
    except (RuntimeError, OSError) as error:
        if isinstance(error, PeerLostError) or not (isinstance(error, OSError) or "gloo" in str(error)):
            raise
        told = PeerLostError(suspect, str(error)) if _current is None else _current.explain(error, suspect)
        raise _remembered(told) from error


def _remembered(error: PeerLostError) -> PeerLostError:
    global _raised
    _raised = error
    return error


@contextlib.contextmanager
def exit_on_lost_rank() -> Iterator[None]:
    """Turn a PeerLostError into exit code 75, without a traceback: the watch has named the lost rank in one line."""
    try:
        yield
    except Exception as error:
        loss = _loss_behind(error)
        if loss is None:
            raise
        if _current is None or _current.lost is None:
            print(f"{loss}; this rank stops", file=sys.stderr, flush=True)
        sys.exit(EXIT_PEER_LOST)


def _loss_behind(error: BaseException | None) -> PeerLostError | None:
    """The PeerLostError that caused `error`, if one did.

    Of what a hook raises in a backward pass, Paddle 3.3.1 makes a SystemError with the cause, or, in a recomputed part,
    an OSError without it: there this rank's own memory of the loss decides.
    """
    while error is not None and not isinstance(error, PeerLostError):
        error = error.__cause__ or error.__context__
    return error or _raised


class _Lifeline:
    """This rank's end: a thread that listens to the others (rank 0) or to rank 0 (the others)."""

    def __init__(self, store: Any, silence: float | None):
        self._silence = silence
        self.rank = int(os.environ.get("PADDLE_TRAINER_ID", "0"))
        self.world_size = int(os.environ["PADDLE_TRAINERS_NUM"])
        self.lost: tuple[int, str] | None = None
        self.left: dict[int, str] = {}
        self._failed = False
        self._news = threading.Event()
        self._peers: dict[socket.socket, _Peer] = {}
        self._lock = threading.Lock()
        self._selector = selectors.DefaultSelector()
        self._listener: socket.socket | None = None
        if self.rank == 0:
            self._listen(store)
        else:
            self._connect(store)
        os.register_at_fork(after_in_child=self._forget)
        atexit.register(self._say_goodbye)
        self._previous_hook, sys.excepthook = sys.excepthook, self._say_why
        threading.Thread(target=self._watch, name="lifeline", daemon=True).start()

    # ---- connecting

    def _listen(self, store: Any) -> None:
        host = own_host()
        listener = socket.socket()
        listener.bind(("127.0.0.1" if host in ("127.0.0.1", "localhost") else "", 0))
        listener.listen(1024)
        self._listener = listener
        self._selector.register(listener, selectors.EVENT_READ)
        store.set(_KEY, f"{host}:{listener.getsockname()[1]}".encode())

    def _connect(self, store: Any) -> None:
        host, port = store.get(_KEY).decode().rsplit(":", 1)
        line = socket.create_connection((host, int(port)), timeout=PEER_TIMEOUT_SECONDS)
        line.settimeout(None)
        self._adopt(line, 0)
        self._send({"rank": self.rank})

    def _adopt(self, line: socket.socket, rank: int | None) -> None:
        _give_up_on_dead_hosts(line)
        with self._lock:
            self._peers[line] = _Peer(rank, time.monotonic())
        self._selector.register(line, selectors.EVENT_READ)

    # ---- the thread

    def _watch(self) -> None:
        next_beat = 0.0
        while self.lost is None:
            for key, _ in self._selector.select(timeout=HEARTBEAT_SECONDS / 5):
                if key.fileobj is self._listener:
                    self._adopt(self._listener.accept()[0], None)
                else:
                    self._read(key.fileobj)
            now = time.monotonic()
            if now >= next_beat:
                self._send({})
                next_beat = now + HEARTBEAT_SECONDS
            for peer in list(self._peers.values()):
                if self._silence is not None and now - peer.last_sign > self._silence:
                    self._lose(peer.rank, f"no sign of life for {self._silence:.0f} s")
        self._end_unless_it_ends()

    def _read(self, line: Any) -> None:
        peer = self._peers[line]
        why = "its process ended without an error message: killed, or out of memory"
        try:
            data = line.recv(65536)
        except OSError as error:
            data = b""
            if error.errno in (errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH):
                why = f"its host does not answer: {error.strerror}"
        if not data:
            self._drop(line)
            if not peer.said_goodbye:
                self._lose(peer.rank, why)
            return
        peer.last_sign = time.monotonic()
        *complete, peer.rest = (peer.rest + data).split(b"\n")
        for message in complete:
            try:
                self._hear(peer, json.loads(message))
            except ValueError:  # not one of ours: a port scan, say
                self._drop(line)
                return

    def _hear(self, peer: _Peer, message: dict[str, Any]) -> None:
        if "rank" in message:
            peer.rank = message["rank"]
        if "lost" in message:
            self._lose(*message["lost"])
        if "left" in message:
            rank, how = message["left"]
            peer.said_goodbye = peer.said_goodbye or rank == peer.rank
            self.left[rank] = how
            self._news.set()
            if self.rank == 0:
                self._send(message)

    def _lose(self, rank: int | None, why: str) -> None:
        if self.lost is not None or rank is None:
            return
        self.lost = (rank, why)
        self._news.set()
        if self.rank == 0:
            self._send({"lost": [rank, why]})

    def _end_unless_it_ends(self) -> None:
        assert self.lost is not None
        rank, why = self.lost
        print(f"rank {self.rank}: rank {rank} is gone ({why}); this rank stops", file=sys.stderr, flush=True)
        time.sleep(GRACE_SECONDS)  # the main thread may be raising a PeerLostError, and cleaning up
        os._exit(EXIT_PEER_LOST)

    # ---- talking

    def _send(self, message: dict[str, Any]) -> None:
        data = json.dumps(message).encode() + b"\n"
        for line in list(self._peers):
            with self._lock, contextlib.suppress(OSError):
                line.sendall(data)

    def _drop(self, line: Any) -> None:
        self._selector.unregister(line)
        with self._lock:
            del self._peers[line]
        line.close()

    def explain(self, error: BaseException, suspect: int | None) -> PeerLostError:
        """Who it was that was lost; waits a moment for the news to arrive."""
        self._news.wait(3.0)
        if self.lost is not None:
            return PeerLostError(*self.lost)
        if self.left and (suspect is None or suspect in self.left):
            rank = next(iter(self.left)) if suspect is None else suspect
            return PeerLostError(rank, f"{self.left[rank]} while rank {self.rank} waited for it")
        return PeerLostError(suspect, f"what rank {self.rank} saw of it: {error}")

    def _say_goodbye(self) -> None:
        """Then wait a little for the others': they may still need the stores that this process serves."""
        self._send({"left": [self.rank, "it ended"]})
        deadline = time.monotonic() + GRACE_SECONDS
        while (
            not self._failed
            and self.lost is None
            and len(self.left) < self.world_size - 1
            and time.monotonic() < deadline
        ):
            time.sleep(0.01)

    def _say_why(self, kind: type[BaseException], error: BaseException, trace: Any) -> None:
        """A rank that ends with a traceback is lost to the others; one that ends because of a loss adds no news."""
        if _loss_behind(error) is None:
            name = f"it raised {kind.__name__}: {error}".splitlines()[0][:500]
            self._send({"lost": [self.rank, name]})
        self._failed = True
        self._previous_hook(kind, error, trace)

    def _forget(self) -> None:
        """In a forked child (a data-loading worker): it is not the rank, and must not hold its line open."""
        for line in list(self._peers):
            line.close()
        self._peers.clear()
        atexit.unregister(self._say_goodbye)
        sys.excepthook = self._previous_hook


def _give_up_on_dead_hosts(line: socket.socket) -> None:
    """Let the system end a connection to a host that lost power or network, also while Python stands still."""
    probe = max(1, round(PEER_TIMEOUT_SECONDS / 6))
    line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    line.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, probe)
    line.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, probe)
    line.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 5)
    line.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(PEER_TIMEOUT_SECONDS * 1000))  # of what was sent


class _Peer:
    def __init__(self, rank: int | None, last_sign: float):
        self.rank = rank
        self.last_sign = last_sign
        self.said_goodbye = False
        self.rest = b""
