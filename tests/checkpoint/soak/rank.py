"""One rank of a job that may be killed: the script that users start, in a process whose events are counted.

Run in a fork of the server of the ranks (`run_rank`), or by Paddle's launcher: `rank.py SCRIPT FLAGS`, with the job in $SOAK.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]
VARIABLE = "SOAK"


def run_rank(words: list[str], settings: str) -> None:
    """Run `python WORDS` in this forked process."""
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 1)
    _run(words, json.loads(settings))


def _run(words: list[str], settings: dict[str, Any]) -> None:
    from paddle_llm.core import durable_files
    from paddle_llm.training import run as runner
    from tests.checkpoint.soak.moments import Kill, Moments, Records, watch_training

    kill = Kill(**settings["kill"]) if settings["kill"] else None
    records = Records(Path(settings["records"]), settings["attempt"])
    moments = Moments(records, Path(settings["output"]), kill)
    original = runner._run

    def watched(*arguments: Any) -> Any:
        watch_training(moments)
        return original(*arguments)

    runner._run = watched
    durable_files.BLOCK_BYTES = 4096  # so that also a part of a small file may be written
    sys.argv = words
    with durable_files.operations_passed_to(moments.on_file):
        runpy.run_path(words[0], run_name="__main__")
    moments.write_counts("events")


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    _run(sys.argv[1:], json.loads(os.environ[VARIABLE]))
