"""Formats what a job under `paddle.distributed.launch` printed, for assertion messages."""

from __future__ import annotations

import subprocess
from pathlib import Path

_LAST_CHARACTERS = 4000  # of each log: pytest and CI systems truncate longer messages at arbitrary points


def launcher_report(done: subprocess.CompletedProcess[str], logs: Path) -> str:
    """Return the launcher's exit code and output streams, and the end of each rank's log in the folder `logs`."""
    parts = {"stdout": done.stdout, "stderr": done.stderr}
    parts |= {log.name: log.read_text(errors="replace") for log in sorted(logs.glob("workerlog.*"))}
    report = "\n".join(f"---- {name}\n{text[-_LAST_CHARACTERS:]}" for name, text in parts.items())
    return f"exit code {done.returncode}\n{report}"
