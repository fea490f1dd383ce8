"""Ranks that mpirun or srun starts directly get the variables of Paddle's launcher."""

from __future__ import annotations

import pytest

from paddle_llm.core.errors import UserError
from paddle_llm.parallel.process.scheduler import first_host, rank_variable, translate_scheduler

OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_LOCAL_RANK": "3",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "4",
    "PMIX_NAMESPACE": "1234",
    "PMI_RANK": "3",
    "PMI_SIZE": "4",
}
SLURM = {
    "SLURM_PROCID": "5",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NODELIST": "gpu[03-04]",
    "SLURM_JOB_ID": "77",
    "SLURM_STEP_ID": "0",
}
PMI = {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}


def test_ranks_of_open_mpi_on_one_machine():
    environment = dict(OPEN_MPI)
    line = translate_scheduler(environment)
    assert line is not None and "mpirun (Open MPI) started rank 3 of 4" in line
    assert environment["PADDLE_TRAINER_ID"] == "3" and environment["PADDLE_TRAINERS_NUM"] == "4"
    assert environment["PADDLE_RANK_IN_NODE"] == "3" and environment["PADDLE_NNODES"] == "1"
    assert environment["FLAGS_selected_gpus"] == "3"
    endpoints = environment["PADDLE_TRAINER_ENDPOINTS"].split(",")
    assert len(set(endpoints)) == 4 and environment["PADDLE_CURRENT_ENDPOINT"] == endpoints[3]
    assert environment["PADDLE_MASTER"] not in endpoints
    assert environment["PADDLE_MASTER"] == f"127.0.0.1:{environment['MASTER_PORT']}"


def test_all_ranks_of_a_job_meet_at_the_same_port_and_jobs_at_different_ones():
    masters = []
    for rank, job in (("0", "1"), ("3", "1"), ("0", "2")):
        environment = OPEN_MPI | {"OMPI_COMM_WORLD_RANK": rank, "PMIX_NAMESPACE": job}
        translate_scheduler(environment)
        masters.append(environment["PADDLE_MASTER"])
    assert masters[0] == masters[1] != masters[2]


def test_ranks_of_srun_meet_on_the_first_machine_of_the_step():
    environment = dict(SLURM)
    translate_scheduler(environment)
    assert environment["PADDLE_MASTER"].startswith("gpu03:")
    assert environment["PADDLE_TRAINER_ID"] == "5" and environment["PADDLE_NNODES"] == "2"
    assert environment["PADDLE_LOCAL_RANK"] == "1" and environment["PADDLE_LOCAL_SIZE"] == "4"


def test_ranks_of_mpich():
    environment = dict(PMI)
    translate_scheduler(environment)
    assert environment["PADDLE_TRAINER_ID"] == "1" and environment["PADDLE_TRAINERS_NUM"] == "2"


@pytest.mark.parametrize(
    "environment",
    [
        {},
        OPEN_MPI | {"PADDLE_TRAINER_ID": "0", "PADDLE_TRAINERS_NUM": "2"},
        {"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_LOCALID": "0"},  # the batch script itself
        SLURM | {"SLURM_STEP_NUM_TASKS": "1"},  # an interactive shell
    ],
)
def test_other_processes_are_left_alone(environment):
    before = dict(environment)
    assert translate_scheduler(environment) is None
    assert environment == before


def test_a_master_of_the_user_is_kept():
    environment = OPEN_MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "2", "MASTER_ADDR": "head", "MASTER_PORT": "29500"}
    translate_scheduler(environment)
    assert environment["PADDLE_MASTER"] == "head:29500" and environment["PADDLE_NNODES"] == "2"


def test_an_unknown_first_machine_is_an_error_of_rank_0():
    environment = OPEN_MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "2"}
    with pytest.raises(UserError, match="started ranks on 2 machines.*Set MASTER_ADDR"):
        translate_scheduler(environment)
    assert environment["PADDLE_TRAINER_ID"] == "3"  # so that only rank 0 prints the error


@pytest.mark.parametrize(
    "visible, card", [("", "3"), ("0,1,2,3", "3"), ("GPU-5a", "0")], ids=["all", "four", "its own"]
)
def test_each_rank_uses_the_card_of_its_local_rank(visible, card):
    environment = OPEN_MPI | {"CUDA_VISIBLE_DEVICES": visible}
    translate_scheduler(environment)
    assert environment["FLAGS_selected_gpus"] == card


@pytest.mark.parametrize(
    "hosts, first",
    [("node1", "node1"), ("a,b", "a"), ("gpu[03-05,9],x", "gpu03"), ("r[1,3]n,q", "r1n"), ("n[007]", "n007")],
)
def test_the_first_machine_of_a_list_in_slurm_notation(hosts, first):
    assert first_host(hosts) == first


def test_only_one_of_several_ranks_has_a_rank_variable():
    assert rank_variable(OPEN_MPI) == "OMPI_COMM_WORLD_RANK" and rank_variable(SLURM) == "SLURM_PROCID"
    assert rank_variable(SLURM | {"SLURM_STEP_NUM_TASKS": "1"}) is None and rank_variable({}) is None


def test_ranks_whose_machines_are_unknown_are_refused():
    """One machine is not assumed: ranks on another one would wait for a master on themselves."""
    environment = {"PMI_RANK": "1", "PMI_SIZE": "2"}
    with pytest.raises(UserError, match="does not tell how many of them are on this machine"):
        translate_scheduler(environment)
