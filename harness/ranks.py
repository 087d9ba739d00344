"""Which process this is, among how many: MPI says, else Slurm, else torchrun, else one. The only door to mpi4py."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MPI_MARKS = ("OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")
LOCAL_MARKS = ("OMPI_COMM_WORLD_LOCAL_RANK", "SLURM_LOCALID", "MPI_LOCALRANKID", "LOCAL_RANK")


@dataclass(frozen=True)
class Ranks:
    """This process among its peers.

    Attributes:
        rank: from 0; rank 0 writes.
        size: how many.
        local_rank: number on this host; picks the GPU.
        launcher: mpi, slurm, torchrun or single.
        address: where rank 0 listens for torch.distributed; under MPI agreed upon anew at each `meeting`.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    launcher: str = "single"
    address: str = ""

    def agree(self, value: Any) -> Any:
        """Rank 0's value, on every rank: each may have read another state of the store."""
        if self.size == 1:
            return value
        if self.launcher == "mpi":
            from mpi4py import MPI  # noqa: PLC0415

            return MPI.COMM_WORLD.bcast(value, root=0)
        return _agree_by_store(self, value)

    def meeting(self) -> str:
        """Where to meet this time: ranks may join more than once, and a port that was used may not be free yet."""
        return _mpi_address() if self.launcher == "mpi" else self.address


def find_ranks(environment: Mapping[str, str] | None = None) -> Ranks:
    """Ask the launcher.

    Raises:
        ValueError: Slurm started several tasks but MPI sees each alone.
    """
    env = os.environ if environment is None else environment
    if any(mark in env for mark in MPI_MARKS):
        return _from_mpi(env)
    if int(env.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        return _from_slurm(env)
    if "RANK" in env and "WORLD_SIZE" in env:
        local = int(env.get("LOCAL_RANK", "0"))
        return Ranks(int(env["RANK"]), int(env["WORLD_SIZE"]), local, "torchrun", "env://")
    return Ranks()


def _from_mpi(env: Mapping[str, str]) -> Ranks:
    from mpi4py import MPI  # noqa: PLC0415 - importing it starts MPI

    rank, size = MPI.COMM_WORLD.Get_rank(), MPI.COMM_WORLD.Get_size()
    tasks = int(env.get("SLURM_STEP_NUM_TASKS", size)) if "PMIX_RANK" in env or "PMI_SIZE" in env else size
    if size == 1 and tasks > 1:
        raise ValueError(
            f"Slurm started {tasks} tasks but MPI sees each alone: this MPI does not speak srun's protocol; "
            "set `launcher: torch` (or pmi2 for MPICH) in the site's file"
        )
    return Ranks(rank, size, _local(env, rank), "mpi")


def _mpi_address() -> str:
    from mpi4py import MPI  # noqa: PLC0415

    comm = MPI.COMM_WORLD
    mine = f"tcp://{_host()}:{_free_port()}" if comm.Get_rank() == 0 else None
    return str(comm.bcast(mine, root=0))


def _from_slurm(env: Mapping[str, str]) -> Ranks:
    rank, size = int(env["SLURM_PROCID"]), int(env["SLURM_STEP_NUM_TASKS"])
    port = 20000 + (int(env["SLURM_JOB_ID"]) * 16 + int(env.get("SLURM_STEP_ID", "0")) % 16) % 20000
    return Ranks(rank, size, _local(env, rank), "slurm", f"tcp://{env['SLURM_LAUNCH_NODE_IPADDR']}:{port}")


def _agree_by_store(ranks: Ranks, value: Any) -> Any:
    """Without MPI: through a key-value store of torch's beside the rendezvous."""
    import pickle  # noqa: PLC0415 - what this program's own ranks tell each other

    from torch.distributed import TCPStore  # type: ignore[attr-defined]  # noqa: PLC0415

    place = os.environ["MASTER_ADDR"] + ":" + os.environ["MASTER_PORT"] if ranks.address == "env://" else ranks.address
    host, _, port = place.removeprefix("tcp://").rpartition(":")
    store = TCPStore(host, int(port) + 1, ranks.size, is_master=ranks.rank == 0)
    if ranks.rank == 0:
        store.set("value", pickle.dumps(value))  # type: ignore[arg-type]
    agreed = pickle.loads(store.get("value"))  # noqa: S301
    store.add("read", 1)
    while ranks.rank == 0 and int(store.get("read")) < ranks.size:
        time.sleep(0.01)  # the store lives in rank 0: it must not go before the others have read
    return agreed


def _local(env: Mapping[str, str], rank: int) -> int:
    return next((int(env[mark]) for mark in LOCAL_MARKS if mark in env), rank)


def _host() -> str:
    """This host as its peers can reach it; a laptop's own name may not resolve."""
    try:
        return socket.gethostbyname(socket.gethostname())
    except OSError:
        return "127.0.0.1"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])
