"""The first module that the fork server of the ranks imports: a Ctrl-C ends the command alone, and without a traceback.

A terminal sends Ctrl-C to all processes of a command. Python 3.11 protects a fork server from it once its modules are
imported, which takes seconds; before that it would end with a traceback. The command that uses the server ends it. The
ranks, which inherit the setting, restore Python's own handler. A rank that is being forked when the command ends reads an
incomplete description of its work.
"""

from __future__ import annotations

import pickle
import signal
import sys
from types import TracebackType


def _print_unless_incomplete(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if not isinstance(error, EOFError | pickle.UnpicklingError):
        sys.__excepthook__(kind, error, trace)


signal.signal(signal.SIGINT, signal.SIG_IGN)
sys.excepthook = _print_unless_incomplete
