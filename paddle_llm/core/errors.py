"""Errors of the user and exit codes. An error is one message without a traceback, printed by rank 0 only."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from paddle_llm.core.counts import counted

EXIT_USER_ERROR = 2
EXIT_STOPPED = 3
EXIT_RESUME = 75  # start again to resume: a rank was lost, or a stop was requested and the state is saved
EXIT_INTERRUPTED = 130


class UserError(Exception):
    """A mistake that the user can fix. The message says what is wrong, where, and what to do."""


class ConfigError(UserError):
    """All mistakes of one configuration.

    Attributes:
        problems: One complete message per mistake.
    """

    def __init__(self, problems: list[str]) -> None:
        self.problems = list(problems)
        head = f"{counted(len(self.problems), 'problem')} in the configuration:"
        super().__init__("\n".join([head, *(f"  {i}. {p}" for i, p in enumerate(self.problems, 1))]))


class TrainingStopped(Exception):
    """Raised if a run cannot continue because a loss is not finite. The message gives the step and what was saved."""


class StopRequested(SystemExit):
    """Raised to end a training that a signal has asked to stop; exit code 75. No handler of ordinary errors catches it.

    Attributes:
        message: What was requested, and what was saved.
    """

    def __init__(self, message: str) -> None:
        self.message = message
        super().__init__(EXIT_RESUME)


def is_first_rank() -> bool:
    """Return whether this is a single process or rank 0 of a job. Needs no process group."""
    return os.environ.get("PADDLE_TRAINER_ID", "0") == "0"


@contextmanager
def exit_on_user_error() -> Iterator[None]:
    """Exit with a message on stderr (rank 0 only).

    The code is 2 for UserError, 3 for TrainingStopped, 75 for StopRequested and 130 for Ctrl-C.
    """
    try:
        yield
    except UserError as error:
        if is_first_rank():
            print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(EXIT_USER_ERROR)
    except TrainingStopped as stop:
        if is_first_rank():
            print(f"stopped: {stop}", file=sys.stderr, flush=True)
        sys.exit(EXIT_STOPPED)
    except StopRequested as stop:
        if is_first_rank():
            print(f"stopped: {stop.message}", file=sys.stderr, flush=True)
        sys.exit(EXIT_RESUME)
    except (KeyboardInterrupt, OSError) as error:
        # Paddle wraps a Ctrl-C that arrives in the backward pass of a PyLayer.
        if isinstance(error, OSError) and "KeyboardInterrupt" not in str(error):
            raise
        if is_first_rank():
            print(
                "interrupted. Run the same command again to continue from the newest checkpoint.",
                file=sys.stderr,
                flush=True,
            )
        sys.exit(EXIT_INTERRUPTED)


def was_interrupted(error: BaseException) -> bool:
    """Return whether an error was caused by a Ctrl-C. Paddle, and modules that are being imported, convert it to other errors."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, KeyboardInterrupt):
        cause = cause.__cause__ or cause.__context__
    return cause is not None or "KeyboardInterrupt" in str(error)
