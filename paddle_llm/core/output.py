"""stdout and stderr of a command, whatever encoding the terminal or pipe has."""

from __future__ import annotations

import sys


def escape_unencodable() -> None:
    r"""Write characters that the encoding of stdout or stderr lacks as `\uXXXX`, so that no result is lost to an error.

    An ASCII stdout is common in containers and cron jobs (LANG=C, PYTHONIOENCODING=ascii). File names that are not UTF-8
    reach Python as lone surrogates, which no encoding has.
    """
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def stdout_is_unicode() -> bool:
    """Whether stdout has every character."""
    return (getattr(sys.stdout, "encoding", None) or "utf-8").lower().replace("_", "-").startswith("utf")
