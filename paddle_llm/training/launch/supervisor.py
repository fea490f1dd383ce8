"""Run the launcher of a job: show the output of the first rank, forward signals, restart after a failure.

Signals go to the ranks, not to Paddle's launcher (3.3.1). It would kill ranks that have not saved their state after 30 s,
and end with the number of the signal instead of the ranks' exit code.
"""

from __future__ import annotations

import codecs
import contextlib
import ctypes
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from paddle_llm.checkpoint.output_lock import WAIT_VARIABLE
from paddle_llm.core.console import say
from paddle_llm.core.errors import EXIT_INTERRUPTED, EXIT_RESUME, EXIT_STOPPED, EXIT_USER_ERROR, UserError
from paddle_llm.parallel.process.parent import ranks_of
from paddle_llm.parallel.process.stop_request import MARK_VARIABLE

LAUNCHER_LOG = "launcher.log"
STOP_MARK = "stop_requested"
_FIRST_RANK_LOG = "workerlog.0"
_POLL_SECONDS = 0.2
_TAIL_LINES = 15
_LOCK_WAIT_SECONDS = "120"  # ranks that are still ending hold the lock of the output folder
_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
_ENDED_BY_ITSELF = (0, EXIT_USER_ERROR, EXIT_STOPPED, EXIT_RESUME, EXIT_INTERRUPTED)
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)
_FAILED_RANK = re.compile(r"Container rank (\d+) status failed cmd .* code (-?\d+) log (\S+)")


def supervise(
    command: Callable[[list[str]], list[str]],
    environment: dict[str, str],
    log_folder: Path,
    max_restarts: int = 0,
    flags_for_restart: Callable[[float], list[str]] = lambda started: [],
    show_launcher: bool = False,
) -> int:
    """Run a job until it succeeds, fails for good, or is stopped by a signal.

    A user's mistake and a training that stopped on a non-finite step are not restarted, because they would repeat, and
    neither is a job whose ranks were asked to stop.

    Args:
        command: Function from additional flags of the job to the command line of the launcher.
        environment: Environment of the launcher.
        log_folder: Folder for the launcher's log and that of each rank; with `show_launcher` for those of the ranks only.
        max_restarts: Number of restarts.
        flags_for_restart: Function from the time of the first start to the additional flags of a restart.
        show_launcher: Whether the launcher writes to stdout and stderr, as in the scripts of launch/. By default it writes to
            its log, and the output of rank 0 is shown.

    Returns:
        Exit code of the job. If a signal has ended its ranks before they could choose one: 130 for SIGINT, else 128 plus
        the number of the signal.

    Raises:
        UserError: If the folder cannot be written.
    """
    run = _run_shown if show_launcher else partial(_run, log_folder=log_folder)
    started, restarts = time.time(), 0
    mark = (log_folder / STOP_MARK).absolute()
    environment = {**environment, MARK_VARIABLE: str(mark)}
    with contextlib.suppress(OSError):  # it does not exist, or the folder is not usable, which is reported below
        mark.unlink()
    code, signals = run(command([]), environment)
    while (
        code not in (0, EXIT_USER_ERROR, EXIT_STOPPED)
        and signals.first is None
        and not mark.exists()
        and restarts < max_restarts
    ):
        restarts += 1
        say(f"The job ended with exit code {code}. Restart {restarts} of {max_restarts}.")
        environment = {WAIT_VARIABLE: _LOCK_WAIT_SECONDS, **environment}
        code, signals = run(command(flags_for_restart(started)), environment)
    if mark.exists() and code not in _ENDED_BY_ITSELF:  # the launcher has killed ranks that were ending
        return EXIT_RESUME
    if signals.interrupts > 1 and code == EXIT_RESUME and not mark.exists():  # a rank has ended before the others
        return EXIT_INTERRUPTED
    if signals.first is not None and code not in _ENDED_BY_ITSELF:
        return EXIT_INTERRUPTED if signals.first == signal.SIGINT else 128 + signals.first
    return code


def _run(command: list[str], environment: dict[str, str], log_folder: Path) -> tuple[int, _ForwardedSignals]:
    """Run the launcher once; return its exit code and the signals that arrived meanwhile."""
    own_log = log_folder / LAUNCHER_LOG
    try:
        log_folder.mkdir(parents=True, exist_ok=True)
        own_log.touch()
    except OSError as error:
        raise UserError(f"--log_dir {log_folder} cannot be written: {error.strerror}. Give another folder.") from error
    first_rank = _Follower(log_folder / _FIRST_RANK_LOG)
    begin = own_log.stat().st_size if own_log.exists() else 0
    with own_log.open("ab") as log, _ForwardedSignals() as signals:
        job = _start(command, environment, stdout=log, stderr=subprocess.STDOUT)
        signals.forward_to(job)
        while job.poll() is None:
            first_rank.show()
            time.sleep(_POLL_SECONDS)
    first_rank.show()
    stopped = signals.first is not None or Path(environment[MARK_VARIABLE]).exists()
    if job.returncode not in (0, EXIT_USER_ERROR, EXIT_STOPPED) and not stopped:
        _report_failure(own_log, begin, log_folder)
    return _exit_code(job), signals


def _run_shown(command: list[str], environment: dict[str, str]) -> tuple[int, _ForwardedSignals]:
    """Run the launcher once with this process's stdout and stderr; return as `_run`."""
    with _ForwardedSignals() as signals:
        job = _start(command, environment)
        signals.forward_to(job)
        job.wait()
    return _exit_code(job), signals


def _start(command: list[str], environment: dict[str, str], **output: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        start_new_session=True,  # a Ctrl-C reaches the ranks once, through this process
        preexec_fn=partial(_end_with_parent, os.getpid()),
        **output,
    )


def _exit_code(job: subprocess.Popen[bytes]) -> int:
    return job.returncode if job.returncode >= 0 else 128 - job.returncode


class _ForwardedSignals:
    """Forwards the signals that stop a job to its ranks. Signals that are ignored (nohup, a background job) stay so.

    The ranks save their state at the first Ctrl-C and end at once at the second; the third one kills them.

    Attributes:
        first: First signal that arrived; None if none did.
        interrupts: Number of times that Ctrl-C was pressed.
    """

    def __init__(self) -> None:
        self.first: int | None = None
        self.interrupts = 0
        self._job: subprocess.Popen[bytes] | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> _ForwardedSignals:
        for number in _FORWARDED:
            if signal.getsignal(number) != signal.SIG_IGN:
                self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def forward_to(self, job: subprocess.Popen[bytes]) -> None:
        """Set the process of the launcher; a signal that has arrived before is sent now."""
        self._job = job
        if self.first is not None:
            self._send(self.first)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.first = self.first or number
        self.interrupts += number == signal.SIGINT
        self._send(signal.SIGKILL if number == signal.SIGINT and self.interrupts > 2 else number)

    def _send(self, number: int) -> None:
        if self._job is None:
            return
        ranks = ranks_of(self._job.pid)
        for rank in ranks:
            with contextlib.suppress(ProcessLookupError):
                os.kill(rank, signal.SIGTERM if number == signal.SIGHUP else number)
        if not ranks:  # the launcher ends itself, and ranks that it is starting
            self._job.send_signal(signal.SIGTERM)


class _Follower:
    """Prints what is appended to a file.

    Args:
        path: File; it need not exist yet. Its present content is not printed.
    """

    def __init__(self, path: Path):
        self._path = path
        self._position = path.stat().st_size if path.exists() else 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def show(self) -> None:
        """Print what was appended since the last call."""
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._position)
            added = file.read()
        self._position += len(added)
        if added:
            sys.stdout.write(self._decoder.decode(added))
            sys.stdout.flush()


def _report_failure(own_log: Path, begin: int, log_folder: Path) -> None:
    """Show the end of the log of the rank that failed, unless it is the first one, which was shown; name the logs."""
    with own_log.open("rb") as file:
        file.seek(begin)
        text = file.read().decode(errors="replace")
    failed = _FAILED_RANK.search(text)
    if failed is None:
        print("\n".join(text.splitlines()[-_TAIL_LINES:]), file=sys.stderr)
    elif failed[3] != str(log_folder / _FIRST_RANK_LOG):
        lines = Path(failed[3]).read_text(errors="replace").splitlines()[-_TAIL_LINES:]
        print(f"Local rank {failed[1]} ended with exit code {failed[2]}. Its last lines:", file=sys.stderr)
        print("\n".join(f"  {line}" for line in lines), file=sys.stderr)
    say(f"The output of every rank is in {log_folder}/workerlog.*, that of the launcher in {own_log}.")


def _end_with_parent(parent: int) -> None:
    """In the launcher's process: get SIGTERM when the parent ends, also if it is killed (prctl(2), Linux).

    SIGUSR1 is ignored, because Slurm may send it to every process of a job and it would end the launcher.
    """
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        os._exit(1)
