"""What a job under `paddle.distributed.launch` has said, for the message of an assertion."""

from __future__ import annotations

import subprocess
from pathlib import Path

_LAST = 4000  # characters of each log: pytest and a CI cut longer ones somewhere


def told(done: subprocess.CompletedProcess[str], logs: Path) -> str:
    """The launcher's exit code and streams, and the end of each rank's log in the folder `logs`."""
    parts = {"stdout": done.stdout, "stderr": done.stderr}
    parts |= {log.name: log.read_text(errors="replace") for log in sorted(logs.glob("workerlog.*"))}
    said = "\n".join(f"---- {name}\n{text[-_LAST:]}" for name, text in parts.items())
    return f"exit code {done.returncode}\n{said}"
