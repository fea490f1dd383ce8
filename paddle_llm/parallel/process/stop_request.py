"""Signals that ask a training to stop: SIGTERM and SIGUSR1 of a scheduler, and Ctrl-C.

While steps are computed, the first signal is only recorded. All ranks learn of it together, with the scalars of a step
(`training/metrics/step_scalars.py`), so a signal to one rank is enough, and no rank stops alone. The training then
saves its state at the end of that step and ends with exit code 75. At any other time (while a job is loaded, or after its
last step) nothing would be lost, and the process ends at once: with code 75, or 130 after Ctrl-C.

A second Ctrl-C always ends the process at once. Other signals may be repeated: Paddle's launcher (3.3.1) sends SIGTERM up
to three times.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from paddle_llm.core.errors import StopRequested, is_first_rank

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
# File that a rank creates when it stops on request, so that what restarts jobs does not start this one again.
MARK_VARIABLE = "PADDLE_LLM_STOP_MARK"
AGAIN = "Start again to resume."


class _StopSignals:
    """The signals of this process.

    Attributes:
        received: First signal that arrived; None if none did.
        deferred: Whether a signal is only recorded.

    Args:
        handled: Signals to handle.
    """

    def __init__(self, handled: list[signal.Signals]) -> None:
        self.received: signal.Signals | None = None
        self.deferred = False
        self._handled = handled
        self._interrupted = False

    def install(self) -> None:
        """Set `receive` as the handler."""
        for one in self._handled:
            signal.signal(one, self.receive)

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal; called in the main thread between two instructions of Python.

        Raises:
            KeyboardInterrupt: At a Ctrl-C outside of training, and at a second one.
            StopRequested: At another signal outside of training.
        """
        is_first, self.received = self.received is None, self.received or signal.Signals(number)
        if number == signal.SIGINT:
            again, self._interrupted = self._interrupted, True
            if again or not self.deferred:
                raise KeyboardInterrupt
        if self.deferred and is_first:
            _announce(signal.Signals(number))
        elif is_first:
            stop(f"{self.received.name} was received outside of training steps. {AGAIN}")


_current: _StopSignals | None = None


@contextmanager
def stop_on_signals(enabled: bool) -> Iterator[None]:
    """Handle the signals that ask a training to stop, within the body.

    A Ctrl-C that is ignored (a job in the background of a script) stays so. Afterwards the previous handlers are
    restored; if a signal was received, all three are ignored instead, so that a repeated one does not change the exit
    code.

    Args:
        enabled: False to let signals end the process; SIGUSR1, too, which `paddle-llm pretrain` lets its launcher ignore.
    """
    global _current
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    if not enabled:
        signal.signal(signal.SIGUSR1, signal.SIG_DFL)
        yield
        return
    handled = [one for one in STOP_SIGNALS if one != signal.SIGINT or signal.getsignal(one) != signal.SIG_IGN]
    previous: dict[int, Any] = {one: signal.getsignal(one) for one in handled}
    current = _current = _StopSignals(handled)
    current.install()
    try:
        yield
    finally:
        _current = None
        for one, handler in previous.items():
            signal.signal(one, handler if current.received is None else signal.SIG_IGN)


def install_again() -> None:
    """Install the handlers again, after imports: Paddle 3.3.1 and PaddleNLP 3.0.0b4 replace the handler of SIGTERM."""
    if _current is not None:
        _current.install()


def defer_stop(deferred: bool) -> None:
    """Decide whether a signal is only recorded (True, while steps are computed) or ends the process at once.

    Args:
        deferred: See above.
    """
    install_again()  # modules may have been imported since
    if _current is not None:
        _current.deferred = deferred


def is_stop_deferred() -> bool:
    """Return whether a signal is only recorded, because steps are computed; the same on all ranks."""
    return _current is not None and _current.deferred


def is_stop_requested() -> bool:
    """Return whether this process has received a signal."""
    return _current is not None and _current.received is not None


def agree_on_stop() -> bool:
    """Return whether any rank has received a signal; for moments outside of a step. Collective over all ranks."""
    import paddle
    import paddle.distributed as dist

    if dist.get_world_size() == 1:
        return is_stop_requested()
    received = paddle.to_tensor([float(is_stop_requested())])
    dist.all_reduce(received)
    return received.item() > 0


def describe_request() -> str:
    """Return a sentence that names the signal and the ranks that received one. Collective over all ranks."""
    import paddle.distributed as dist

    own = _current.received.name if _current is not None and _current.received is not None else None
    if dist.get_world_size() == 1:
        return f"{own} was received."
    names: list[str | None] = []
    dist.all_gather_object(names, own)
    ranks = [str(rank) for rank, name in enumerate(names) if name is not None]
    first = next(name for name in names if name is not None)
    return f"{first} was received by rank{'s' * (len(ranks) > 1)} {', '.join(ranks)}."


def stop(message: str) -> NoReturn:
    """End this process because a stop was requested, and leave a mark for what would restart the job.

    Args:
        message: What was requested, and what was saved.

    Raises:
        StopRequested: Always.
    """
    mark = os.environ.get(MARK_VARIABLE)
    if mark:
        Path(mark).parent.mkdir(parents=True, exist_ok=True)
        Path(mark).touch()
    raise StopRequested(message)


def _announce(number: signal.Signals) -> None:
    """Report on the first rank that the training will stop; `print` must not be used in a signal handler."""
    if is_first_rank():
        again = " Ctrl-C again: end at once, without saving." if number == signal.SIGINT else ""
        os.write(2, f"{number.name}: the training saves its state at the end of this step and stops.{again}\n".encode())
