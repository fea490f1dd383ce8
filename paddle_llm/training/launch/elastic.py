"""Start a job on several machines, and after a failure on those that remain (`--min_nodes`, MIN_NODES).

Before each start all machines register at the master (`rendezvous.py`). The first start needs all of them. A restart waits for
a time and then takes the layout of `planner/elastic.py` for the machines that have registered: the global batch stays, and
every sample is used once. A machine that registers later takes part from the next restart on.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import NoReturn

from paddle_llm.config.reader import Resolved
from paddle_llm.core.console import say
from paddle_llm.core.counts import counted
from paddle_llm.core.errors import EXIT_RESUME, UserError
from paddle_llm.planner.elastic import Batch, Shrunk, shrink, why_not
from paddle_llm.training.launch.addresses import is_own_address, launcher_addresses
from paddle_llm.training.launch.rendezvous import Meeting, Request, meet, rejoin_seconds


@dataclass(frozen=True)
class NodeStart:
    """How this machine starts the launcher.

    Attributes:
        nodes: Number of machines.
        rank: Number of this machine.
        flags: Flags of the job with which it has another layout and the same global batch; empty on all machines.
    """

    nodes: int
    rank: int
    flags: list[str]


class ElasticNodes:
    """The machines of one job.

    Args:
        resolved: Config of the job on all machines.
        nodes: Number of machines.
        min_nodes: Smallest number of machines with which a restart continues.
        master: HOST:PORT of the first machine.
        node_rank: Number of this machine; None: in the order of registration.

    Raises:
        UserError: If no smaller number of machines has a layout, or the numbers contradict each other.
    """

    def __init__(self, resolved: Resolved, *, nodes: int, min_nodes: int, master: str, node_rank: int | None):
        config = resolved.config
        self._resolved, self._nodes, self._min_nodes = resolved, nodes, min_nodes
        self._node_rank, self._seconds, self._has_started = node_rank, rejoin_seconds(), False
        self._ranks_per_node = resolved.layout.world_size // nodes
        self._batch = Batch(config.per_device_train_batch_size, config.gradient_accumulation_steps)
        if not 1 <= min_nodes < nodes:
            advice = "Drop it" if nodes == 1 else f"Give at most {nodes - 1}, or drop it"
            raise UserError(
                f"--min_nodes {min_nodes} is not a smaller number of machines than --nnodes {nodes}. {advice}."
            )
        if self._shrink(nodes - 1) is None:
            reasons = "; ".join(self._why_not(number) for number in range(nodes - 1, min_nodes - 1, -1))
            raise UserError(
                f"--min_nodes {min_nodes}: the job has no layout on fewer than {nodes} machines. {reasons}. Drop --min_nodes, or change "
                "a degree or the batch."
            )
        self._master, own = launcher_addresses(master)
        self._is_local = is_own_address(self._master.rpartition(":")[0], own) and node_rank in (None, 0)

    def next_start(self) -> NodeStart:
        """Register this machine and return how it starts. Ends this process with exit code 75 if it does not.

        Raises:
            UserError: If the master was started with other settings.
        """
        is_restart, self._has_started = self._has_started, True
        wait = f"up to {self._seconds:.0f} s" if is_restart else f"until all {self._nodes} machines are ready"
        say(f"Waiting at {self._master} {wait}.")
        job = {"machines": self._nodes, "min_nodes": self._min_nodes, "ranks per machine": self._ranks_per_node}
        found = meet(
            self._master,
            Request({**job, "layout": str(self._resolved.layout)}, self._node_rank),
            self._nodes,
            is_local=self._is_local,
            seconds=self._seconds if is_restart else None,
            choose=self._choose,
        )
        if found.rank is None:
            self._end(found)
        return NodeStart(found.nodes, found.rank, self._flags(found.nodes))

    def _end(self, found: Meeting) -> NoReturn:
        if found.reason.startswith("this machine"):
            raise UserError(f"{found.reason[0].upper()}{found.reason[1:]}. Start all machines with the same command.")
        say(f"The job does not continue on this machine: {found.reason}. Start again to resume.")
        sys.exit(EXIT_RESUME)

    def _shrink(self, nodes: int) -> Shrunk | None:
        ranks = self._ranks_per_node
        return shrink(self._resolved.layout, self._batch, ranks_per_node=ranks, nodes=nodes, min_nodes=self._min_nodes)

    def _why_not(self, nodes: int) -> str:
        return why_not(self._resolved.layout, self._batch, ranks_per_node=self._ranks_per_node, nodes=nodes)

    def _choose(self, number: int) -> tuple[int, str]:
        """Return how many of the registered machines start, and why not more."""
        came = f"{number} of {counted(self._nodes, 'machine')} registered within {self._seconds:.0f} s"
        if number < self._min_nodes:
            return 0, f"{came}, fewer than --min_nodes {self._min_nodes}"
        found = self._shrink(number)
        if found is None:
            reasons = "; ".join(self._why_not(one) for one in range(number, self._min_nodes - 1, -1))
            return 0, f"{came}, and the job has no layout on them: {reasons}"
        if found.nodes < number:
            return found.nodes, f"{came}, and {found.nodes} are used: {self._why_not(number)}"
        return number, came

    def _flags(self, nodes: int) -> list[str]:
        """Return the flags for a number of machines, and report what they change."""
        if nodes == self._nodes:
            return []
        layout, config = self._resolved.layout, self._resolved.config
        found = self._shrink(nodes)
        assert found is not None and found.nodes == nodes
        samples = self._batch.micro_batch * self._batch.accumulation * layout.data_world_size
        say(
            f"The job continues on {nodes} of {counted(self._nodes, 'machine')}: layout {layout} -> {found.layout}, gradient accumulation "
            f"{self._batch.accumulation} -> {found.accumulation}, global batch {samples} as before."
        )
        if found.layout.sharding < layout.sharding:
            say(
                f"Each rank holds {layout.sharding / found.layout.sharding:.3g} times as much of what is sharded (sharding degree "
                f"{layout.sharding} -> {found.layout.sharding})."
            )
        flags = {
            "data_parallel_degree": found.layout.data,
            "sharding_parallel_degree": found.layout.sharding,
            "gradient_accumulation_steps": found.accumulation,
        }
        if self._resolved.entry == "pretrain" and layout.pipeline == 1 and (config.do_eval or config.do_predict):
            # An evaluation of the same samples; with a pipeline it has as many as a global batch.
            flags["eval_iters"] = -(-config.eval_iters * layout.data_world_size // found.layout.data_world_size)
        return [word for name, value in flags.items() for word in (f"--{name}", str(value))]
