"""What a user's mistake looks like: one readable message, exit code 2, no traceback, printed by rank 0 only."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

EXIT_USER_ERROR = 2
EXIT_STOPPED = 3
EXIT_PEER_LOST = 75  # another process of the job has ended; started again, the job resumes
EXIT_INTERRUPTED = 130


class UserError(Exception):
    """Something the user can mend. The message says what is wrong, where, and what to do."""


class ConfigError(UserError):
    """All mistakes of one configuration, told at once.

    Attributes:
        problems: one line each, already complete ("what, where, what to do").
    """

    def __init__(self, problems: list[str]):
        self.problems = list(problems)
        count = len(self.problems)
        head = "1 problem in the configuration:" if count == 1 else f"{count} problems in the configuration:"
        super().__init__("\n".join([head, *(f"  {i}. {p}" for i, p in enumerate(self.problems, 1))]))


class TrainingStopped(Exception):
    """A run that cannot go on (a loss that is not a number); the message says where it stood and what is left."""


def is_first_rank() -> bool:
    """True in a single process and on rank 0 of a job; needs no process group."""
    return os.environ.get("PADDLE_TRAINER_ID", "0") == "0"


@contextmanager
def exit_on_user_error() -> Iterator[None]:
    """Turn a UserError into its message on stderr (rank 0 only) and exit code 2 on every rank (TrainingStopped: 3)."""
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
    except (KeyboardInterrupt, OSError) as error:
        # Paddle wraps a Ctrl-C that arrives in the backward pass of a PyLayer.
        if isinstance(error, OSError) and "KeyboardInterrupt" not in str(error):
            raise
        if is_first_rank():
            print("interrupted; the same command continues from the newest checkpoint", file=sys.stderr, flush=True)
        sys.exit(EXIT_INTERRUPTED)


def was_interrupted(error: BaseException) -> bool:
    """Whether an error results from a Ctrl-C: a module that is being imported, and Paddle, turn it into one of their own."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, KeyboardInterrupt):
        cause = cause.__cause__ or cause.__context__
    return cause is not None or "KeyboardInterrupt" in str(error)
