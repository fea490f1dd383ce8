"""Run a job and restart it after a failure: `supervise.py MAX_RESTART LOG_DIR LAUNCHER ... -- [CONFIG.json] [--key value ...]`.

LAUNCHER is the command line of paddle.distributed.launch with the script of a rank. The launcher (3.3.1) ignores its own option
`--max_restart` unless the master is etcd.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from paddle_llm.core.errors import exit_on_user_error
from paddle_llm.training.launch.restart import restart_flags
from paddle_llm.training.launch.supervisor import supervise


def main(arguments: list[str]) -> int:
    """Run the job and return its exit code."""
    separator = arguments.index("--")
    maximum, log_folder, *launcher = arguments[:separator]
    words = arguments[separator + 1 :]
    return supervise(
        lambda more: [*launcher, *words, *more],
        dict(os.environ),
        Path(log_folder),
        int(maximum),
        lambda started: restart_flags(started, words),
        show_launcher=True,
    )


if __name__ == "__main__":
    with exit_on_user_error():
        sys.exit(main(sys.argv[1:]))
