"""A process that writes checkpoints as the product's does, except for one fault at one operation on files.

The variable FAULT holds JSON with

- `at`: number of the operation of a save, 1 for the first; or `operation`, such as "rename", for the first one of that kind
- `step`: step whose save has the fault
- `rank`: rank whose process has it; absent: every rank
- `action`: "kill" this process, "kill rank", "full" (a disk without space), or "wait" for the file `until`
- `note`: file to which the id of this process is written first, and whether the output folder is locked
"""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from paddle_llm.checkpoint.output_lock import RUN_LOCK
from paddle_llm.checkpoint.saving import process
from paddle_llm.core.durable_files import operations_passed_to

COMMAND = (sys.executable, "-m", "tests.checkpoint.faulty_writer")


def variables(**fault: Any) -> dict[str, str]:
    """Return the environment of processes with a fault."""
    return {"FAULT": json.dumps(fault)}


def main() -> None:
    fault = json.loads(os.environ["FAULT"])
    if fault.get("rank") not in (None, int(os.environ.get("PADDLE_TRAINER_ID", "0"))):
        process.main()
    passed = 0

    def observe(operation: str, path: Path) -> None:
        nonlocal passed
        folder = next((one for one in (path, *path.parents) if one.name == f".saving-{fault['step']}"), None)
        if folder is None and path.name != f"checkpoint-{fault['step']}":
            return
        passed += 1
        if passed == fault.get("at") or operation == fault.get("operation"):
            if "note" in fault:
                locked = any((one / RUN_LOCK).exists() for one in path.parents)
                Path(fault["note"]).write_text(json.dumps({"pid": os.getpid(), "locked": locked}))
            act(fault)

    with operations_passed_to(observe):
        process.main()


def act(fault: dict[str, Any]) -> None:
    if fault["action"] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif fault["action"] == "kill rank":
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(1000)  # the kernel ends this process, too
    elif fault["action"] == "full":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    elif fault["action"] == "wait":
        while not Path(fault["until"]).exists():
            time.sleep(0.01)


if __name__ == "__main__":
    main()
