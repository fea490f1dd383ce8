"""The first module that the fork server of the ranks imports: it lets Ctrl-C end the command without a traceback.

A terminal sends Ctrl-C to all processes of a command. Python 3.11 protects a fork server from it only after the modules
of the server are imported, which takes seconds. Until then the server would end with a traceback. Therefore
`start_server` starts it with the signal blocked, and this module ignores the signal. The command that uses the server
ends it. The ranks inherit the setting and restore Python's own handler. A rank that is forked while the command ends
reads an incomplete description of its work; its error is not reported.
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
signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
sys.excepthook = _print_unless_incomplete
