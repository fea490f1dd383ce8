"""Run a function on several ranks of this machine: `run_ranks(fn, 4, arg)` returns its results by rank.

CPU ranks are forked from a server that has imported paddle and paddlenlp: four of them start in about three seconds,
with `paddle.distributed.launch` in half a minute. `fn` must be importable (a function of a module).
"""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import multiprocessing
import os
import pickle
import random
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from paddle_llm.parallel.process.environment import hide_gpus, mkl_cpu_type, read_cpuinfo
from paddle_llm.parallel.process.parent import end_with_creator

# The modules of this package are those of every training that read no variable of a rank (`failure_detection` does).
PRELOAD = [
    "paddle_llm.rehearse.fork_server",
    "paddle",
    "paddlenlp.trainer",
    "paddle_llm.config.reader",
    "paddle_llm.models.build",
    "paddle_llm.parallel.gloo.backend",
    "paddle_llm.checkpoint.merged_model",
    "paddle_llm.data.loader",
    "paddle_llm.data.samples.dataset",
    "paddle_llm.peft.method",
]
# Paddle and its math library read these variables when they are imported, which happens in the server.
RANK_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
if _cpu_type := mkl_cpu_type(read_cpuinfo()):
    RANK_ENVIRONMENT["MKL_DEBUG_CPU_TYPE"] = _cpu_type
SERVER_ENVIRONMENT = dict(RANK_ENVIRONMENT)
hide_gpus(SERVER_ENVIRONMENT)  # CUDA cannot be used after a fork


@dataclass
class Outcome:
    """The outcome of one rank.

    Attributes:
        rank: The rank.
        state: "returned", "raised", "died" or "stuck".
        value: Return value of the function.
        exception: Exception of the function; None if it cannot be pickled.
        trace: Traceback of the exception.
        exit_code: Exit code of the process; negative for a signal.
        stderr: Output on stderr.
    """

    rank: int
    state: str = "stuck"
    value: Any = None
    exception: BaseException | None = None
    trace: str = ""
    exit_code: int | None = None
    stderr: str = ""


@dataclass
class _Child:
    process: BaseProcess
    pipe: Connection
    outcome: Outcome = field(default_factory=lambda: Outcome(-1))


class RankError(Exception):
    """A rank raised, died or did not finish.

    Attributes:
        rank: First rank that failed.
        exception: Exception of that rank; None if it died or did not finish.
        outcomes: Outcome of each rank.
    """

    def __init__(self, message: str, rank: int, outcomes: list[Outcome]):
        super().__init__(message)
        self.rank = rank
        self.exception = outcomes[rank].exception
        self.outcomes = outcomes


def run_ranks(
    fn: Callable[..., Any],
    world_size: int,
    *args: Any,
    timeout: float = 120,
    grace: float = 10,
    env: dict[str, str] | None = None,
    quiet: bool = False,
    device: str = "cpu",
) -> list[Any]:
    """Call `fn(*args)` on every rank of a job and return the results by rank.

    The environment is that of `paddle.distributed.launch` with gloo as the backend; `fn` initialises what it needs.

    Args:
        fn: Function of a module. With `device` "gpu", its module must not import paddle.
        world_size: Number of ranks.
        *args: Arguments of `fn`.
        timeout: Seconds after which ranks that have not finished are killed.
        grace: Seconds that the other ranks have to end after a first failure.
        env: Variables to add to the environment of the ranks.
        quiet: Whether the stderr of the ranks is only returned in the outcomes of an error; otherwise it is also
            printed at the end, rank by rank.
        device: "cpu", or "gpu" to give rank r the r-th visible GPU, and NCCL.

    Raises:
        RankError: If a rank raises, dies or does not finish.
        KeyboardInterrupt: If a rank is interrupted.
    """
    # Importing paddle initialises CUDA, which cannot be used after a fork.
    context: Any = multiprocessing.get_context("spawn" if device == "gpu" else "forkserver")
    if device != "gpu":
        start_server()
    ports = _free_ports(world_size + 1)
    children: list[_Child] = []
    failed_first: list[int] = []
    with tempfile.TemporaryDirectory(prefix="ranks-") as logs:
        try:
            with _environment(RANK_ENVIRONMENT if device == "gpu" else SERVER_ENVIRONMENT):
                for rank in range(world_size):
                    mine, theirs = context.Pipe()
                    variables = {**_rank_environment(rank, world_size, ports, device), **(env or {})}
                    arguments = (theirs, f"{logs}/{rank}", variables, fn, args)
                    process = context.Process(target=_run_rank, args=arguments, daemon=True)
                    process.start()
                    theirs.close()
                    children.append(_Child(process, mine, Outcome(rank)))
            failed_first = _collect(children, timeout, grace)
        finally:
            _reap(children, logs, quiet)
    outcomes = [child.outcome for child in children]
    if all(outcome.state == "returned" for outcome in outcomes):
        return [outcome.value for outcome in outcomes]
    first = outcomes[_first_failure(outcomes, failed_first)]
    if isinstance(first.exception, KeyboardInterrupt) or first.exit_code == -signal.SIGINT:
        # A terminal sends Ctrl-C to the ranks, too, and they may end first.
        raise KeyboardInterrupt(f"rank {first.rank}")
    raise RankError(_describe(outcomes, failed_first, timeout), first.rank, outcomes)


def start_server() -> None:
    """Start the server from which ranks are forked, without waiting for it; otherwise `run_ranks` starts it."""
    multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOAD)
    resource_tracker.ensure_running()  # first, because it unblocks the signal
    # The server inherits the mask: until its first module ignores Ctrl-C, the signal is pending. In this process it is
    # delivered when the mask is restored.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        with _environment(SERVER_ENVIRONMENT):
            forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _run_rank(
    pipe: Connection, log: str, variables: dict[str, str], fn: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    end_with_creator()
    # The server writes to the stderr of the process that started it.
    with open(log, "ab") as file:
        os.dup2(file.fileno(), 2)
    for name in [name for name in os.environ if name.startswith(("PADDLE_", "MASTER_"))]:
        del os.environ[name]
    os.environ.update(variables)
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    imported_too_early = "paddle" in sys.modules and variables["PADDLE_DISTRI_BACKEND"] == "nccl"
    # The server imported paddlenlp, which then read the size of the job from the environment of the server.
    import paddle

    paddle.distributed.parallel._global_parallel_env = None
    paddle.distributed.collective._global_env = None
    try:
        # Ignored until here, as in the fork server: a Ctrl-C outside of this block would print a traceback.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if imported_too_early:
            raise RuntimeError(f"{fn.__module__} imports paddle before FLAGS_selected_gpus is set")
        message: tuple[str, Any, BaseException | None, str] = ("returned", fn(*args), None, "")
        payload = pickle.dumps(message)
    except BaseException as error:
        message = ("raised", None, error, traceback.format_exc())
        try:
            payload = pickle.dumps(message)
            pickle.loads(payload)
        except Exception:
            payload = pickle.dumps((*message[:2], None, message[3]))
    pipe.send_bytes(payload)
    if message[0] == "returned":
        with contextlib.suppress(EOFError):
            pipe.recv_bytes()  # wait for all ranks: this process may serve a store that they still need
        atexit._run_exitfuncs()  # one of them announces the end to other ranks; a failed rank does not do that
    # Not `sys.exit`: the interpreter may destroy Paddle's threads and stores in the wrong order.
    os._exit(0)


def _collect(children: list[_Child], timeout: float, grace: float) -> list[int]:
    """Wait for the outcomes of the ranks, and return the ranks that failed in the order of their failures."""
    deadline = time.monotonic() + timeout
    open_pipes: dict[Connection, _Child] = {child.pipe: child for child in children}
    failed: list[int] = []
    while open_pipes and (left := deadline - time.monotonic()) > 0:
        for pipe in wait(list(open_pipes), timeout=left):
            assert isinstance(pipe, Connection)
            outcome = open_pipes.pop(pipe).outcome
            try:
                outcome.state, outcome.value, outcome.exception, outcome.trace = pickle.loads(pipe.recv_bytes())
            except EOFError:
                outcome.state = "died"
            if outcome.state != "returned":
                failed.append(outcome.rank)
                deadline = min(deadline, time.monotonic() + grace)
    return failed


def _reap(children: list[_Child], logs: str, quiet: bool) -> None:
    for child in children:
        pid = child.process.pid
        if child.outcome.state == "stuck" and pid is not None and child.process.is_alive():
            os.kill(pid, signal.SIGUSR1)  # prints the stacks of its threads on stderr
            time.sleep(0.2)
            child.process.kill()
    for child in children:
        child.pipe.close()
    for child in children:
        child.process.join(15)
        if child.process.is_alive():
            child.process.kill()
            child.process.join()
        child.outcome.exit_code = child.process.exitcode
        child.process.close()
        with contextlib.suppress(FileNotFoundError), open(f"{logs}/{child.outcome.rank}", errors="replace") as file:
            child.outcome.stderr = file.read()
            if not quiet:
                sys.stderr.write(child.outcome.stderr)


def _first_failure(outcomes: list[Outcome], failed_first: list[int]) -> int:
    return failed_first[0] if failed_first else next(o.rank for o in outcomes if o.state == "stuck")


def _describe(outcomes: list[Outcome], failed_first: list[int], timeout: float) -> str:
    lines = []
    for rank in failed_first:
        outcome = outcomes[rank]
        if outcome.state == "died":
            lines.append(f"rank {rank} died with exit code {outcome.exit_code}")
        else:
            lines.append(f"rank {rank} raised:\n{outcome.trace}")
    stuck = [outcome.rank for outcome in outcomes if outcome.state == "stuck"]
    if stuck:
        when = "after the others had failed" if failed_first else f"within {timeout:.0f} s"
        lines.append(f"did not finish {when}, killed: ranks {', '.join(map(str, stuck))}")
    return "\n".join(lines)


def _rank_environment(rank: int, world_size: int, ports: list[int], device: str) -> dict[str, str]:
    # An index into the GPUs of CUDA_VISIBLE_DEVICES.
    own = {"FLAGS_selected_gpus": str(rank), "PADDLE_DISTRI_BACKEND": "nccl"} if device == "gpu" else {}
    master, *endpoints = [f"127.0.0.1:{port}" for port in ports]
    return {
        "PADDLE_TRAINER_ID": str(rank),
        "PADDLE_TRAINERS_NUM": str(world_size),
        "PADDLE_RANK_IN_NODE": str(rank),
        "PADDLE_LOCAL_SIZE": str(world_size),
        "PADDLE_GLOBAL_SIZE": str(world_size),
        "PADDLE_GLOBAL_RANK": str(rank),
        "PADDLE_LOCAL_RANK": str(rank),
        "PADDLE_NNODES": "1",
        "PADDLE_CURRENT_ENDPOINT": endpoints[rank],
        "PADDLE_TRAINER_ENDPOINTS": ",".join(endpoints),
        "PADDLE_MASTER": master,
        "PADDLE_DISTRI_BACKEND": "gloo",
        "TRAINING_ROLE": "TRAINER",
        **own,
    }


def _free_ports(count: int) -> list[int]:
    """Return free ports below the range from which the system takes ports for outgoing connections."""
    ports: list[int] = []
    chooser = random.SystemRandom()
    while len(ports) < count:
        port = chooser.randrange(12000, 32000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            if port not in ports:
                ports.append(port)
    return ports


@contextlib.contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """Set variables while the fork server may be starting, and restore the old values afterwards."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
