"""Detect lost ranks: when a rank dies, all others report which one it was and end, instead of waiting forever.

Every rank keeps a connection to rank 0. The operating system closes it when a process ends, and gives it up when the
other host no longer answers. Rank 0 reports a loss to the other ranks. A rank that ends normally announces that first.
A loss that gloo notices becomes a `PeerLostError`. The process of a rank that waits for something else is ended.

On a CPU, a rank whose process exists but sends nothing for `PEER_TIMEOUT_SECONDS` is lost, too. On a GPU it is not:
Python may be blocked for minutes there, while kernels are compiled or NCCL connects its ranks.
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
from types import TracebackType
from typing import Any

from paddle_llm.core.errors import EXIT_RESUME
from paddle_llm.parallel.gloo.interface import own_host
from paddle_llm.parallel.process.store import Store

PEER_TIMEOUT_SECONDS = float(os.environ.get("PADDLE_LLM_PEER_TIMEOUT", "60"))
HEARTBEAT_SECONDS = min(5.0, PEER_TIMEOUT_SECONDS / 4)
GRACE_SECONDS = 10.0
_REPORT_SECONDS = 3.0  # time that a report of a loss may take to arrive
_KEY = "paddle_llm/failure_detection"
_HOST_DOWN = (errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH)
_MAX_REASON_CHARACTERS = 500


class PeerLostError(RuntimeError):
    """Another rank of the job is lost, so this one cannot continue.

    Attributes:
        rank: The lost rank; None if it is unknown.
    """

    def __init__(self, rank: int | None, why: str):
        self.rank = rank
        super().__init__(f"rank {rank} is gone ({why})" if rank is not None else f"a rank is gone ({why})")

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (self.rank, self.args[0])


def _restore(rank: int | None, message: str) -> PeerLostError:
    error = PeerLostError(rank, "")
    error.args = (message,)
    return error


_current: _FailureDetector | None = None
_last_raised: PeerLostError | None = None  # by this rank; Paddle may raise another error in its place


def start(store: Store, max_silence: float | None = PEER_TIMEOUT_SECONDS) -> None:
    """Connect this rank to rank 0, if it is not connected yet.

    Args:
        store: Store of the job, through which rank 0 publishes its address.
        max_silence: Seconds without a message after which a connected rank is lost; None for no limit.
    """
    global _current
    if _current is None and int(os.environ.get("PADDLE_TRAINERS_NUM", "1")) > 1:
        _current = _FailureDetector(store, max_silence)


def start_on_gpus() -> None:
    """Connect this rank of a job on GPUs, after `fleet.init`; on CPUs the first gloo group connects the rank."""
    from paddle.distributed import collective

    if collective._default_store is not None:
        start(collective._default_store, max_silence=None)


def raise_if_lost() -> None:
    """Raise PeerLostError if a rank is known to be lost; for loops that wait."""
    if _current is not None and _current.lost is not None:
        raise _remember(PeerLostError(*_current.lost))


@contextlib.contextmanager
def peer_loss_named(suspect: int | None = None) -> Iterator[None]:
    """Turn an error about a closed connection into a PeerLostError that names the lost rank.

    Args:
        suspect: Global rank at the other end of the connection; it is named if nothing better is known.
    """
    try:
        raise_if_lost()
        yield
    except (RuntimeError, OSError) as error:
        if isinstance(error, PeerLostError) or not (isinstance(error, OSError) or "gloo" in str(error)):
            raise
        named = PeerLostError(suspect, str(error)) if _current is None else _current.explain(error, suspect)
        raise _remember(named) from error


def _remember(error: PeerLostError) -> PeerLostError:
    global _last_raised
    _last_raised = error
    return error


@contextlib.contextmanager
def exit_on_lost_rank() -> Iterator[None]:
    """Turn a PeerLostError into exit code 75 without a traceback. The failure detection reports it in one line."""
    try:
        yield
    except Exception as error:
        loss = _loss_behind(error)
        if loss is None:
            raise
        if _current is None or _current.lost is None:
            print(f"{loss}; this rank stops", file=sys.stderr, flush=True)
        sys.exit(EXIT_RESUME)


def _loss_behind(error: BaseException | None) -> PeerLostError | None:
    """Return the PeerLostError that caused `error`; None if a lost rank did not cause it.

    Paddle 3.3.1 turns an exception of a hook in a backward pass into a SystemError with a cause, or, in a recomputed
    part, into an OSError without one. Then the last PeerLostError of this rank decides.
    """
    while error is not None and not isinstance(error, PeerLostError):
        error = error.__cause__ or error.__context__
    return error or _last_raised


class _Peer:
    """The other end of a connection.

    Attributes:
        rank: Its rank; None until it has sent it.
        last_message: Time of its last message, by `time.monotonic`.
        has_ended: Whether it has announced its end.
        incomplete: Bytes of a message that has not arrived completely.
    """

    def __init__(self, rank: int | None, last_message: float):
        self.rank = rank
        self.last_message = last_message
        self.has_ended = False
        self.incomplete = b""


class _FailureDetector:
    """A thread that listens to all other ranks (on rank 0) or to rank 0 (on the others).

    Attributes:
        rank: This rank.
        world_size: Number of ranks of the job.
        lost: The lost rank and the reason; None as long as no rank is lost.
        ended: Ranks that have announced their end, with the reason.
    """

    def __init__(self, store: Store, max_silence: float | None):
        self._max_silence = max_silence
        self.rank = int(os.environ.get("PADDLE_TRAINER_ID", "0"))
        self.world_size = int(os.environ["PADDLE_TRAINERS_NUM"])
        self.lost: tuple[int, str] | None = None
        self.ended: dict[int, str] = {}
        self._failed = False
        self._was_informed = threading.Event()
        self._peers: dict[socket.socket, _Peer] = {}
        self._lock = threading.Lock()
        self._selector = selectors.DefaultSelector()
        self._listener: socket.socket | None = None
        if self.rank == 0:
            self._listen(store)
        else:
            self._connect(store)
        os.register_at_fork(after_in_child=self._close_in_child)
        atexit.register(self._announce_end)
        self._previous_hook, sys.excepthook = sys.excepthook, self._report_exception
        threading.Thread(target=self._watch, name="failure detection", daemon=True).start()

    # ---- connections

    def _listen(self, store: Store) -> None:
        host = own_host()
        listener = socket.socket()
        listener.bind(("127.0.0.1" if host in ("127.0.0.1", "localhost") else "", 0))
        listener.listen(1024)
        self._listener = listener
        self._selector.register(listener, selectors.EVENT_READ)
        store.set(_KEY, f"{host}:{listener.getsockname()[1]}".encode())

    def _connect(self, store: Store) -> None:
        host, port = store.get(_KEY).decode().rsplit(":", 1)
        connection = socket.create_connection((host, int(port)), timeout=PEER_TIMEOUT_SECONDS)
        connection.settimeout(None)
        self._add(connection, 0)
        self._send({"rank": self.rank})

    def _add(self, connection: socket.socket, rank: int | None) -> None:
        detect_dead_host(connection)
        with self._lock:
            self._peers[connection] = _Peer(rank, time.monotonic())
        self._selector.register(connection, selectors.EVENT_READ)

    def _remove(self, connection: socket.socket) -> None:
        self._selector.unregister(connection)
        with self._lock:
            del self._peers[connection]
        connection.close()

    # ---- the thread

    def _watch(self) -> None:
        next_heartbeat = 0.0
        while self.lost is None:
            for key, _ in self._selector.select(timeout=HEARTBEAT_SECONDS / 5):
                if self._listener is not None and key.fileobj is self._listener:
                    self._add(self._listener.accept()[0], None)
                else:
                    assert isinstance(key.fileobj, socket.socket)
                    self._read(key.fileobj)
            now = time.monotonic()
            if now >= next_heartbeat:
                self._send({})
                next_heartbeat = now + HEARTBEAT_SECONDS
            for peer in list(self._peers.values()):
                if self._max_silence is not None and now - peer.last_message > self._max_silence:
                    self._declare_lost(peer.rank, f"no message for {self._max_silence:.0f} s")
        self._end_process()

    def _read(self, connection: socket.socket) -> None:
        peer = self._peers[connection]
        why = "its process ended without an error message: killed, or out of memory"
        try:
            data = connection.recv(65536)
        except OSError as error:
            data = b""
            if error.errno in _HOST_DOWN:
                why = f"its host does not answer: {error.strerror}"
        if not data:
            self._remove(connection)
            if not peer.has_ended:
                self._declare_lost(peer.rank, why)
            return
        peer.last_message = time.monotonic()
        *complete, peer.incomplete = (peer.incomplete + data).split(b"\n")
        for message in complete:
            try:
                self._handle(peer, json.loads(message))
            except ValueError:  # not from a rank of the job, for example a port scan
                self._remove(connection)
                return

    def _handle(self, peer: _Peer, message: dict[str, Any]) -> None:
        if "rank" in message:
            peer.rank = message["rank"]
        if "lost" in message:
            self._declare_lost(*message["lost"])
        if "ended" in message:
            rank, how = message["ended"]
            peer.has_ended = peer.has_ended or rank == peer.rank
            self.ended[rank] = how
            self._was_informed.set()
            if self.rank == 0:
                self._send(message)

    def _declare_lost(self, rank: int | None, why: str) -> None:
        if self.lost is not None or rank is None:
            return
        if self.rank == 0:
            self._send({"lost": [rank, why]})
        # Before the main thread learns of the loss: it may then end this process at any time.
        print(f"rank {self.rank}: rank {rank} is gone ({why}); this rank stops", file=sys.stderr, flush=True)
        self.lost = (rank, why)
        self._was_informed.set()

    def _end_process(self) -> None:
        """End this process, unless its main thread ends first."""
        time.sleep(GRACE_SECONDS)  # the main thread may be raising a PeerLostError and cleaning up
        os._exit(EXIT_RESUME)

    # ---- messages

    def _send(self, message: dict[str, Any]) -> None:
        data = json.dumps(message).encode() + b"\n"
        for connection in list(self._peers):
            with self._lock, contextlib.suppress(OSError):
                connection.sendall(data)

    def explain(self, error: BaseException, suspect: int | None) -> PeerLostError:
        """Return the loss behind an error about a connection; wait a moment for its report to arrive.

        Args:
            error: The error.
            suspect: Global rank at the other end of the connection; None if unknown.
        """
        self._was_informed.wait(_REPORT_SECONDS)
        if self.lost is not None:
            return PeerLostError(*self.lost)
        if self.ended and (suspect is None or suspect in self.ended):
            rank = next(iter(self.ended)) if suspect is None else suspect
            return PeerLostError(rank, f"{self.ended[rank]} while rank {self.rank} waited for it")
        return PeerLostError(suspect, f"error on rank {self.rank}: {error}")

    def _announce_end(self) -> None:
        """Announce the end of this rank, then wait for the others, which may still need a store of this process."""
        self._send({"ended": [self.rank, "it ended"]})
        deadline = time.monotonic() + GRACE_SECONDS
        while (
            not self._failed
            and self.lost is None
            and len(self.ended) < self.world_size - 1
            and time.monotonic() < deadline
        ):
            time.sleep(0.01)

    def _report_exception(self, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        """Report this rank as lost when it ends with an exception that another loss has not caused."""
        if _loss_behind(error) is None:
            name = f"it raised {kind.__name__}: {error}".splitlines()[0][:_MAX_REASON_CHARACTERS]
            self._send({"lost": [self.rank, name]})
        self._failed = True
        self._previous_hook(kind, error, trace)

    def _close_in_child(self) -> None:
        """Close the connections in a forked child (a dataloader worker), which is not the rank."""
        for connection in list(self._peers):
            connection.close()
        self._peers.clear()
        atexit.unregister(self._announce_end)
        sys.excepthook = self._previous_hook


def detect_dead_host(connection: socket.socket) -> None:
    """Let the system end a connection to a host without power or network, also while Python is blocked."""
    probe = max(1, round(PEER_TIMEOUT_SECONDS / 6))
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, probe)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, probe)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 5)
    timeout_ms = round(PEER_TIMEOUT_SECONDS * 1000)  # for data that was sent and not acknowledged
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, timeout_ms)
