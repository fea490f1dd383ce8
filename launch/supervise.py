"""Run a job and restart it after a failure: `supervise.py MAX_RESTART LOG_DIR LAUNCHER ... -- [CONFIG.json] [--key value ...]`.

LAUNCHER is the command line of paddle.distributed.launch with the script of a rank. The launcher (3.3.1) ignores its own option
`--max_restart` unless the master is etcd. `--elastic NODES MIN_NODES RANKS MASTER NODE_RANK` before MAX_RESTART (NODE_RANK may
be empty) restarts on fewer machines; LAUNCHER then has no options about machines.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from paddle_llm.config.reader import resolve
from paddle_llm.core.errors import exit_on_user_error
from paddle_llm.training.launch.addresses import launcher_addresses
from paddle_llm.training.launch.elastic import ElasticNodes
from paddle_llm.training.launch.options import node_options
from paddle_llm.training.launch.restart import restart_flags
from paddle_llm.training.launch.supervisor import supervise

_LAUNCHER = "paddle.distributed.launch"


def main(arguments: list[str]) -> int:
    """Run the job and return its exit code."""
    separator = arguments.index("--")
    before, words = arguments[:separator], arguments[separator + 1 :]
    numbers = []
    if before[0] == "--elastic":
        numbers, before = before[1:6], before[6:]
    maximum, log_folder, *launcher = before
    elastic = _elastic(numbers, launcher, words) if numbers else None

    def command(more: list[str]) -> list[str]:
        if elastic is None:
            return [*launcher, *words, *more]
        start = elastic.next_start()
        machines = node_options(*launcher_addresses(numbers[3]), start.nodes, start.rank)
        at = launcher.index(_LAUNCHER) + 1
        return [*launcher[:at], *machines, *launcher[at:], *words, *more, *start.flags]

    return supervise(
        command,
        dict(os.environ),
        Path(log_folder),
        int(maximum),
        lambda started: restart_flags(started, words),
        show_launcher=True,
    )


def _elastic(numbers: list[str], launcher: list[str], words: list[str]) -> ElasticNodes:
    """Return the machines of the job, after all mistakes of its config were reported."""
    nodes, min_nodes, ranks = map(int, numbers[:3])
    entry = "finetune" if Path(launcher[-1]).name == "finetune_generation.py" else "pretrain"
    resolved = resolve(words, world_size=nodes * ranks, entry=entry)
    rank = int(numbers[4]) if numbers[4] else None
    return ElasticNodes(resolved, nodes=nodes, min_nodes=min_nodes, master=numbers[3], node_rank=rank)


if __name__ == "__main__":
    with exit_on_user_error():
        sys.exit(main(sys.argv[1:]))
