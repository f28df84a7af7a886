"""Under torchrun, srun or mpirun: what the environment says of this process, without torch.

There is no parent of ours: rank 0 keeps the ledger in a thread, and a failure ends the run, to be resumed from its last
checkpoint.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from plait.errors import UserError


@dataclass(frozen=True)
class World:
    """This process among all. address: "host:port" to meet at, or None where all are on this host and meet at a file.

    serving: whether rank 0 opens the port itself (torchrun's agent has done so). job: names this start of the program.
    """

    launcher: str
    rank: int
    size: int
    local_rank: int
    local_size: int
    address: str | None
    serving: bool
    job: str

    @property
    def one_host(self) -> bool:
        return self.local_size == self.size


_NAMES = {
    "torchrun": ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
    "mpirun": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    "mpiexec": ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    "srun": ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE"),
}
_JOBS = ("TORCHELASTIC_RUN_ID", "PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid", "PMI_ID", "SLURM_JOB_ID", "SLURM_STEP_ID")


def read(variables: Mapping[str, str] = os.environ) -> World | None:
    """The world that a launcher made, or None where plait was started plainly.

    Raises UserError for a half-set environment, and for several hosts without MASTER_ADDR and MASTER_PORT.
    """
    launcher = next((name for name, keys in _NAMES.items() if keys[0] in variables and keys[1] in variables), None)
    if launcher is None:
        if "RANK" in variables or "WORLD_SIZE" in variables:
            raise UserError("of RANK and WORLD_SIZE one is set and one is not: set both, as torchrun does, or neither")
        return None
    rank, size, local_rank, local_size = _numbers(launcher, variables)
    one_host = local_size == size
    return World(
        launcher,
        rank,
        size,
        local_rank,
        local_size,
        _address(launcher, variables, one_host),
        serving=variables.get("TORCHELASTIC_USE_AGENT_STORE") != "True",
        job="-".join(variables[key] for key in (*_JOBS, "TORCHELASTIC_RESTART_COUNT") if key in variables) or str(os.getppid()),
    )


def leading() -> bool:
    """Whether this process speaks for the run: rank 0, or the only one that was started."""
    world = read()
    return world is None or world.rank == 0


def _numbers(launcher: str, variables: Mapping[str, str]) -> tuple[int, int, int, int]:
    rank_key, size_key, local_rank_key, local_size_key = _NAMES[launcher]
    try:
        rank, size = int(variables[rank_key]), int(variables[size_key])
        local_size = int(variables.get(local_size_key, "1" if size == 1 else variables[size_key]).partition("(")[0].partition(",")[0])
        local_rank = int(variables.get(local_rank_key, rank % local_size))
    except ValueError as error:
        raise UserError(f"the environment that {launcher} made holds no number where one is due: {error}") from None
    if not (0 <= rank < size and 0 <= local_rank < local_size <= size):
        raise UserError(
            f"{rank_key} = {rank}, {size_key} = {size}, {local_rank_key} = {local_rank}, {local_size_key} = {local_size} do not agree"
        )
    return rank, size, local_rank, local_size


def _address(launcher: str, variables: Mapping[str, str], one_host: bool) -> str | None:
    if "MASTER_ADDR" in variables and "MASTER_PORT" in variables:
        return f"{variables['MASTER_ADDR']}:{variables['MASTER_PORT']}"
    if one_host:
        return None
    raise UserError(f"{launcher} started processes on several hosts: set MASTER_ADDR and MASTER_PORT to where rank 0 can be reached")
