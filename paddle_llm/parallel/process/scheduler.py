"""Ranks that `mpirun` or `srun` starts directly, without Paddle's launcher.

Open MPI, MPICH and Intel MPI (PMI) and Slurm describe each rank by their own variables. They are translated to those
of `paddle.distributed.launch`, which Paddle and this package read.
"""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass

from paddle_llm.core.errors import UserError

_RANK = "PADDLE_TRAINER_ID"
_DEFAULT_PORT = 37777
_FIRST_PORT, _PORTS = 20000, 10000  # below the range from which systems take ports for outgoing connections


@dataclass(frozen=True)
class _Scheduler:
    """Variables of one program that starts ranks. A name may be absent from an environment.

    Attributes:
        name: Name for messages.
        rank: Rank in the job.
        size: Number of ranks of the job.
        local_rank: Rank on this machine.
        local_size: Number of ranks on this machine.
        nodes: Number of machines.
        job: Variables that together identify the job.
        hosts: List of machines in Slurm's notation.
    """

    name: str
    rank: str
    size: str
    local_rank: str
    local_size: str
    nodes: str
    job: tuple[str, ...]
    hosts: str


_SCHEDULERS = (
    _Scheduler(
        "mpirun (Open MPI)",
        rank="OMPI_COMM_WORLD_RANK",
        size="OMPI_COMM_WORLD_SIZE",
        local_rank="OMPI_COMM_WORLD_LOCAL_RANK",
        local_size="OMPI_COMM_WORLD_LOCAL_SIZE",
        nodes="",
        job=("PMIX_NAMESPACE",),
        hosts="",
    ),
    # srun also sets PMI_*, so it comes first. The batch script of a job has SLURM_PROCID, too, but no number of a step.
    _Scheduler(
        "srun (Slurm)",
        rank="SLURM_PROCID",
        size="SLURM_STEP_NUM_TASKS",
        local_rank="SLURM_LOCALID",
        local_size="",
        nodes="SLURM_STEP_NUM_NODES",
        job=("SLURM_JOB_ID", "SLURM_STEP_ID"),
        hosts="SLURM_STEP_NODELIST",
    ),
    _Scheduler(
        "mpiexec (PMI)",
        rank="PMI_RANK",
        size="PMI_SIZE",
        local_rank="MPI_LOCALRANKID",
        local_size="MPI_LOCALNRANKS",
        nodes="",
        job=("PMI_JOBID",),
        hosts="",
    ),
)


def rank_variable(environment: Mapping[str, str]) -> str | None:
    """Return the variable with the rank that `mpirun` or `srun` gave this process; None if it is not one of several."""
    found = _scheduler_of(environment)
    return found.rank if found is not None else None


def translate_scheduler(environment: MutableMapping[str, str] = os.environ) -> str | None:
    """Set the variables of Paddle's launcher if `mpirun` or `srun` started this process as one of several ranks.

    Nothing is changed under Paddle's launcher. A master that the user has set (`MASTER_ADDR`, `PADDLE_MASTER`) is kept.

    Args:
        environment: Environment to read and change.

    Returns:
        Line to report; None if nothing was changed.

    Raises:
        UserError: If the number of machines is unknown, or there are several and the first of them is unknown.
    """
    found = _scheduler_of(environment)
    if found is None or _RANK in environment:
        return None
    rank, size = int(environment[found.rank]), int(environment[found.size])
    environment[_RANK] = str(rank)  # before an error, which rank 0 alone reports
    local_rank = int(environment.get(found.local_rank, rank))
    nodes = _nodes(found, environment, size)
    host, port = _master(found, environment, nodes)
    own = "127.0.0.1" if nodes == 1 else os.uname().nodename
    # Only the number of endpoints counts: the ranks meet at the master.
    endpoints = [f"{own}:{port + 1 + other}" for other in range(size)]
    environment.update(
        {
            "PADDLE_TRAINERS_NUM": str(size),
            "PADDLE_GLOBAL_RANK": str(rank),
            "PADDLE_GLOBAL_SIZE": str(size),
            "PADDLE_LOCAL_RANK": str(local_rank),
            "PADDLE_RANK_IN_NODE": str(local_rank),
            "PADDLE_LOCAL_SIZE": environment.get(found.local_size, str(-(-size // nodes))),
            "PADDLE_NNODES": str(nodes),
            "PADDLE_MASTER": f"{host}:{port}",
            "PADDLE_CURRENT_ENDPOINT": endpoints[rank],
            "PADDLE_TRAINER_ENDPOINTS": ",".join(endpoints),
            # Paddle reads these two before PADDLE_MASTER.
            "MASTER_ADDR": host,
            "MASTER_PORT": str(port),
        }
    )
    environment.setdefault("FLAGS_selected_gpus", _card(environment, local_rank))
    return f"{found.name} started rank {rank} of {size}; the ranks meet at {host}:{port}."


def _scheduler_of(environment: Mapping[str, str]) -> _Scheduler | None:
    for one in _SCHEDULERS:
        if one.rank in environment and int(environment.get(one.size, "1")) > 1:
            return one
    return None


def _nodes(scheduler: _Scheduler, environment: Mapping[str, str], size: int) -> int:
    """Return the number of machines."""
    if scheduler.nodes in environment:
        return int(environment[scheduler.nodes])
    if scheduler.local_size not in environment:
        raise UserError(
            f"{scheduler.name} started {size} ranks and does not tell how many of them are on this machine. Use "
            "paddle-llm pretrain --nproc_per_node N, or python -m paddle.distributed.launch."
        )
    return -(-size // int(environment[scheduler.local_size]))


def _master(scheduler: _Scheduler, environment: Mapping[str, str], nodes: int) -> tuple[str, int]:
    """Return host and port of the master: the user's, else the first machine and a port that belongs to the job."""
    given_host, _, given_port = environment.get("PADDLE_MASTER", "").rpartition(":")
    host = environment.get("MASTER_ADDR") or given_host
    port = environment.get("MASTER_PORT") or given_port or str(_port_of(scheduler, environment))
    if not host and nodes == 1:
        host = "127.0.0.1"
    if not host and scheduler.hosts in environment:
        host = first_host(environment[scheduler.hosts])
    if not host:
        raise UserError(
            f"{scheduler.name} started ranks on {nodes} machines, and the host of rank 0 is unknown. Set MASTER_ADDR to "
            "it for every rank, for example: mpirun -x MASTER_ADDR=HOST ..."
        )
    return host, int(port)


def _port_of(scheduler: _Scheduler, environment: Mapping[str, str]) -> int:
    """Return a port that all ranks of a job derive alike, and ranks of different jobs rarely."""
    job = [environment[name] for name in scheduler.job if name in environment]
    return _FIRST_PORT + zlib.crc32(".".join(job).encode()) % _PORTS if job else _DEFAULT_PORT


def first_host(hosts: str) -> str:
    """Return the first machine of a list in Slurm's notation: "gpu[03-05,9],login" -> "gpu03"."""
    found = re.match(r"([^,\[]+)(?:\[([^,\-\]]+)[^\]]*\]([^,\[]*))?", hosts)
    if found is None:
        raise UserError(f"SLURM_STEP_NODELIST = {hosts!r} is not a list of machines. Set MASTER_ADDR to the first one.")
    return found[1] + (found[2] or "") + (found[3] or "")


def _card(environment: Mapping[str, str], local_rank: int) -> str:
    """Return the rank's card: the only visible one, if the scheduler gave the rank its own, else that of its local rank."""
    visible = [card for card in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if card]
    return "0" if len(visible) == 1 else str(local_rank)
