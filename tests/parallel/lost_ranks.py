"""Functions that run inside ranks when one of them is lost; see test_failure_detection.py."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from typing import Any

from tests.helpers.processes import wait_until, wait_until_blocked


def start(grace: float = 1.0) -> tuple[Any, int]:
    """Start gloo and the failure detection, and return when rank 0 watches every other rank.

    Args:
        grace: Seconds between the report of a loss and the end of this process.

    Returns:
        Paddle and this rank.
    """
    import paddle

    from paddle_llm.parallel.gloo.backend import install_gloo_backend
    from paddle_llm.parallel.process import failure_detection

    failure_detection.GRACE_SECONDS = grace
    install_gloo_backend()
    paddle.distributed.init_parallel_env()
    _wait_until_all_are_watched()
    paddle.distributed.barrier()
    return paddle, paddle.distributed.get_rank()


def _wait_until_all_are_watched() -> None:
    """On rank 0: wait until every other rank has introduced itself to the failure detection."""
    from paddle_llm.parallel.process import failure_detection

    detector = failure_detection._current
    if detector.rank == 0:
        others = set(range(1, detector.world_size))
        wait_until(
            lambda: {peer.rank for peer in list(detector._peers.values())} == others, 60, "all ranks are watched"
        )


def _process_ids(paddle: Any) -> list[int]:
    """Return the process id of every rank. All ranks call this."""
    found: list[Any] = []
    paddle.distributed.all_gather(found, paddle.to_tensor([os.getpid()]))
    return [int(pid) for pid in found]


def lose(how: str) -> str | None:
    """Lose rank 3 in the given way; the other ranks wait for it in different ways and return the error that they get."""
    # Rank 0 ends first: the end of rank 1 would interrupt its collective.
    paddle, rank = start(grace=1.0 if os.environ["PADDLE_TRAINER_ID"] == "0" else 5.0)
    dist = paddle.distributed
    pair, with_lost = dist.new_group([0, 1]), dist.new_group([1, 3])
    processes = _process_ids(paddle)
    tensor = paddle.ones([8])
    try:
        if rank == 3:
            wait_until_blocked(processes[:3])
            _be_lost(how)
        elif rank == 2:
            dist.recv(tensor, src=3)
        elif rank == 1:
            dist.all_reduce(tensor, group=with_lost)
        else:
            dist.all_reduce(tensor, group=pair)  # with rank 1, which itself waits for rank 3
    except RuntimeError as error:
        return f"{type(error).__name__}: {error}"
    return None


def _be_lost(how: str) -> None:
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "frozen":
        os.kill(os.getpid(), signal.SIGSTOP)
    if how == "raised":
        try:
            raise ValueError("no such file: corpus.bin")
        except ValueError:
            sys.excepthook(*sys.exc_info())
            os._exit(1)


def lose_in_backward(recomputed: bool) -> object:
    """Lose rank 1; rank 0 reduces a gradient with it at the end of a backward pass, as sharded gradients are reduced."""
    paddle, rank = start(grace=30.0)
    from paddle.base import core
    from paddle.distributed.fleet.utils import recompute

    from paddle_llm.parallel.process.failure_detection import exit_on_lost_rank

    weight, part = paddle.ones([8]), paddle.ones([8])
    weight.stop_gradient = part.stop_gradient = False

    def loss():
        doubled = recompute(lambda x: x * weight, part) if recomputed else part * weight
        return doubled.sum()

    def reduce_at_the_end(*_):
        core.eager._add_backward_final_hook(lambda: paddle.distributed.all_reduce(weight.grad))

    weight._register_backward_hook(reduce_at_the_end)
    loss().backward()
    processes = _process_ids(paddle)
    if rank == 1:
        wait_until_blocked(processes[:1])
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        with exit_on_lost_rank():
            loss().backward()
    except SystemExit as leaving:
        return leaving.code
    return "continued"


def lose_while_others_compute() -> str:
    """Lose rank 1; rank 0 does not communicate with it."""
    paddle, rank = start()
    processes = _process_ids(paddle)
    if rank == 1:
        wait_until_blocked(processes[:1])
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)
    return "continued"


def leave_one_by_one() -> str:
    """End the ranks normally, at different times."""
    _, rank = start(grace=2.0)
    time.sleep(0.5 * rank)
    return "ended"


def wait_for_a_late_rank(limit_ms: int, late: float) -> str:
    """Let rank 0 be late for an all-reduce, until rank 1 has stopped waiting, but at most `late` seconds.

    Args:
        limit_ms: Timeout of the job in milliseconds.
        late: Maximum delay of rank 0 in seconds.
    """
    paddle, rank = start()
    from paddle_llm.parallel.gloo import rendezvous as gloo_rendezvous

    store = paddle.distributed.collective._default_store
    paddle.distributed.barrier()
    gloo_rendezvous.job_timeout_ms = lambda: limit_ms
    group = paddle.distributed.new_group([0, 1])
    if rank == 0:
        end = time.monotonic() + late
        while time.monotonic() < end and store.add("rank 1 has stopped waiting", 0) == 0:
            time.sleep(0.05)
    try:
        paddle.distributed.all_reduce(paddle.ones([1]), group=group)
    except RuntimeError:
        store.add("rank 1 has stopped waiting", 1)
        return "too late"
    return "in time"


def on_gpus(how: str) -> str:
    """Start a store and the failure detection without gloo, as a job on GPUs does. Rank 2 is lost or busy; the others sleep."""
    from paddle.base import core

    from paddle_llm.parallel.process import failure_detection

    failure_detection.GRACE_SECONDS = 1.0
    rank, size = int(os.environ["PADDLE_TRAINER_ID"]), int(os.environ["PADDLE_TRAINERS_NUM"])
    host, port = os.environ["PADDLE_MASTER"].split(":")
    store = core.TCPStore(host, int(port), rank == 0, size, 30)
    failure_detection.start(store, max_silence=None)
    _wait_until_all_are_watched()
    if rank == 0:
        store.set("all ranks are watched", b"1")
    store.get("all ranks are watched")
    if rank == 2 and how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if rank == 2:
        ctypes.PyDLL(None).sleep(3)  # blocks Python, as a compiler or NCCL does
    time.sleep(3 if how == "busy" else 60)
    return "continued"
