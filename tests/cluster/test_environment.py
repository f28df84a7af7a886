"""What a launcher's environment means; several real processes are started in test_launchers.py."""

from __future__ import annotations

import pytest

from plait.cluster.environment import read
from plait.errors import UserError

TORCHRUN = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}


def test_a_plain_start_is_no_world() -> None:
    assert read({"PATH": "/bin"}) is None


def test_torchrun() -> None:
    world = read({**TORCHRUN, "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RUN_ID": "x"})
    assert world is not None
    assert (world.launcher, world.rank, world.size, world.address, world.serving) == ("torchrun", 1, 2, "localhost:29500", False)


def test_mpirun_on_one_host_meets_at_a_file() -> None:
    world = read(
        {
            "OMPI_COMM_WORLD_RANK": "1",
            "OMPI_COMM_WORLD_SIZE": "2",
            "OMPI_COMM_WORLD_LOCAL_RANK": "1",
            "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
            "PMIX_NAMESPACE": "job-7",
        }
    )
    assert world is not None
    assert (world.launcher, world.rank, world.address, world.one_host, world.job) == ("mpirun", 1, None, True, "job-7")


def test_srun_over_hosts_needs_to_be_told_where_to_meet() -> None:
    slurm = {"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "1", "SLURM_STEP_TASKS_PER_NODE": "2(x2)"}
    with pytest.raises(UserError, match="MASTER_ADDR and MASTER_PORT"):
        read(slurm)
    world = read({**slurm, "MASTER_ADDR": "node1", "MASTER_PORT": "1234"})
    assert world is not None
    assert (world.launcher, world.rank, world.local_rank, world.local_size, world.one_host) == ("srun", 3, 1, 2, False)


def test_an_sbatch_script_is_a_plain_start() -> None:
    assert read({"SLURM_PROCID": "0", "SLURM_JOB_ID": "7"}) is None


@pytest.mark.parametrize("wrong", [{"RANK": "0"}, {**TORCHRUN, "RANK": "2"}, {**TORCHRUN, "RANK": "one"}])
def test_half_set_and_contradicting_environments_are_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(UserError):
        read(wrong)
