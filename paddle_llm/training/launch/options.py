"""The processes of a job: how many on which cards and machines, and the command that starts them."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from paddle_llm.config.device import count_cards
from paddle_llm.config.run_config import Entry
from paddle_llm.core.errors import UserError
from paddle_llm.training.launch.addresses import launcher_addresses

_ENTRIES = Path(__file__).parent / "entry"


@dataclass(frozen=True)
class LaunchOptions:
    """Options of `paddle-llm pretrain` and `paddle-llm finetune` about processes.

    Attributes:
        nproc_per_node: Processes on this machine; None: one per card in `gpus`, else one.
        gpus: Cards of this machine, like "0,1"; None: the first `nproc_per_node` visible ones.
        nnodes: Number of machines.
        min_nodes: Smallest number of machines with which a restart continues; None: all.
        master: HOST:PORT of the first machine; needed for more than one machine.
        node_rank: Number of this machine, from 0; None: the first machine is 0, the others as they arrive.
        max_restarts: Number of times that a failed job is started again, from its newest checkpoint.
        log_dir: Folder for the output of each rank.
    """

    nproc_per_node: int | None = None
    gpus: str | None = None
    nnodes: int = 1
    min_nodes: int | None = None
    master: str | None = None
    node_rank: int | None = None
    max_restarts: int = 0
    log_dir: str = "log"

    @property
    def cards(self) -> list[str] | None:
        """Cards of `gpus`; None without them."""
        return None if self.gpus is None else [card.strip() for card in self.gpus.split(",")]

    @property
    def processes(self) -> int:
        """Number of processes on this machine."""
        return self.nproc_per_node or len(self.cards or [""])

    @property
    def world_size(self) -> int:
        """Number of processes on all machines."""
        return self.processes * self.nnodes

    @property
    def needs_launcher(self) -> bool:
        """Whether the job needs more than this process."""
        return self.world_size > 1 or self.gpus is not None or self.max_restarts > 0

    def check(self) -> None:
        """Check the options against each other.

        Raises:
            UserError: If they contradict each other or one is missing.
        """
        if self.gpus is not None:
            cards = self.cards or []
            if not all(cards) or len(set(cards)) < len(cards):
                raise UserError(f"--gpus {self.gpus}: not a list of different cards. Use --gpus 0,1,2,3, for example.")
            if self.nproc_per_node not in (None, len(cards)):
                raise UserError(
                    f"--nproc_per_node {self.nproc_per_node} and --gpus {self.gpus} contradict each other: one process runs on "
                    "each card. Drop one of the two."
                )
        if self.nnodes > 1 and self.master is None:
            raise UserError(
                f"--nnodes {self.nnodes} needs --master HOST:PORT: the first machine, and a port that is free there."
            )
        for name, value in (("master", self.master), ("node_rank", self.node_rank), ("min_nodes", self.min_nodes)):
            if self.nnodes == 1 and value is not None:
                raise UserError(f"--{name} {value} is for jobs on several machines. Add --nnodes N, or drop --{name}.")
        if self.min_nodes is not None and self.max_restarts == 0:
            raise UserError(f"--min_nodes {self.min_nodes} is for restarts. Add --max_restarts N, or drop --min_nodes.")
        if self.node_rank is not None and self.node_rank >= self.nnodes:
            raise UserError(f"--node_rank {self.node_rank}: the last machine of {self.nnodes} is {self.nnodes - 1}.")

    @property
    def log_folder(self) -> Path:
        """Folder for the output of this machine's ranks; machines may share a file system."""
        if self.nnodes == 1:
            return Path(self.log_dir)
        name = f"node{self.node_rank}" if self.node_rank is not None else f"node-{os.uname().nodename}"
        return Path(self.log_dir) / name


def launch_command(
    options: LaunchOptions, entry: Entry, device: str, words: list[str], nodes: tuple[int, int | None] | None = None
) -> list[str]:
    """Return the command line of `paddle.distributed.launch`.

    Args:
        options: Checked options.
        entry: Kind of the job.
        device: "cpu" or "gpu".
        words: CONFIG.json and flags of the job.
        nodes: Number of machines and number of this one (None: in order of arrival), if they are not those of the options.

    Raises:
        UserError: If not enough cards are visible, cards are given for a job on the CPU, or a machine has no address.
    """
    command = [sys.executable, "-u", "-m", "paddle.distributed.launch"]
    if options.gpus is not None and device != "gpu":
        raise UserError(
            f"--gpus {options.gpus}: the job would run on the CPU (--device cpu, or no GPU was found). Use --nproc_per_node "
            f"{options.processes} for a CPU."
        )
    if device == "gpu":
        command += ["--gpus", ",".join(choose_cards(options, os.environ, count_cards()))]
    else:
        command += ["--nproc_per_node", str(options.processes)]
    number, rank = nodes or (options.nnodes, options.node_rank)
    if options.nnodes > 1:
        command += node_options(*launcher_addresses(str(options.master)), number, rank)
    return [*command, "--log_dir", str(options.log_folder), str(_ENTRIES / f"{entry}.py"), *words]


def node_options(master: str, own: str, nodes: int, rank: int | None) -> list[str]:
    """Return the launcher's options about machines.

    Args:
        master: IP:PORT of the master.
        own: Address of this machine.
        nodes: Number of machines.
        rank: Number of this machine; None: in order of arrival.
    """
    options = ["--nnodes", str(nodes), "--host", own]
    if nodes > 1:
        options += ["--master", master]
        options += ["--rank", str(rank)] if rank is not None else []
    return options


def launch_environment(options: LaunchOptions, device: str) -> dict[str, str]:
    """Return the environment of the launcher."""
    environment = dict(os.environ)
    # Paddle 3.3.1: these variables take precedence over the launcher's options.
    for name in ("PADDLE_MASTER", "PADDLE_NNODES"):
        environment.pop(name, None)
    if device == "cpu":
        # Paddle 3.3.1 looks each rank up in this list, also on a CPU. The ranks hide all cards again.
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, range(options.processes)))
    return environment


def choose_cards(options: LaunchOptions, environment: Mapping[str, str], present: int = 0) -> list[str]:
    """Return the cards of this machine's ranks: `--gpus`, else the first visible ones.

    Paddle's launcher (3.3.1) fails with an IndexError or a ValueError if there are fewer, before any rank runs.

    Args:
        options: Checked options.
        environment: Environment variables.
        present: Number of cards of this machine; 0 if it is unknown.

    Raises:
        UserError: If CUDA_VISIBLE_DEVICES or this machine does not have them.
    """
    text = environment.get("CUDA_VISIBLE_DEVICES")
    given = options.cards
    if text not in (None, "all"):
        visible = [card.strip() for card in str(text).split(",") if card.strip()]
        owner, advice = f"CUDA_VISIBLE_DEVICES={text}", "Change one of the two."
    elif present:
        visible = [str(card) for card in range(present)]
        owner, advice = (
            "this machine",
            f"Its cards are {visible[0]} to {visible[-1]}." if present > 1 else "Its only card is 0.",
        )
    else:
        return given or [str(card) for card in range(options.processes)]
    hidden = [card for card in given or [] if card not in visible]
    if hidden:
        raise UserError(f"--gpus {options.gpus}: {owner} does not have card {', '.join(hidden)}. {advice}")
    if given is None and len(visible) < options.processes:
        raise UserError(
            f"--nproc_per_node {options.processes} needs {options.processes} cards, and {owner} has "
            f"{len(visible)} card{'s' * (len(visible) != 1)}. {advice}"
        )
    return given or visible[: options.processes]
