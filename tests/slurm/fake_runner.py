"""A stand-in for the harness, named to GroupJob by `runner`: cells that only take time, on ranks that MPI joined."""

import os
import time
from datetime import UTC, datetime
from pathlib import Path

from lacuna.results.record import Record


def run(cells, store, cell_timeout_s):
    """Sleep FAKE_CELL_S for each cell that is missing; rank 0 writes, and notes in FAKE_LOG what it computed."""
    rank, size, share = _ranks()
    todo = share([c for c in cells if (h := store.head(c.key)) is None or h.status != "ok"])
    for cell in todo:
        started = datetime.now(UTC).isoformat()
        time.sleep(float(os.environ["FAKE_CELL_S"]))
        share(None)  # as tensor parallel ranks do, wait for each other
        if rank == 0:
            status = "error" if cell.method.name == "broken" else "ok"
            reason, gpus = "planned" * (status != "ok"), {"gpus": os.environ.get("CUDA_VISIBLE_DEVICES", "")}
            store.put(Record(cell, status, reason, metrics={"ranks": size}, provenance=gpus, started=started))
            with Path(os.environ["FAKE_LOG"]).open("a") as log:
                log.write(f"{cell.key}\n")
    return {c.key: "ok" for c in cells}


def meet(cells, store, cell_timeout_s):
    """Join the ranks by torch, from Slurm's variables and the job's MASTER_ADDR and MASTER_PORT; add them up."""
    import torch

    rank, size = int(os.environ["SLURM_PROCID"]), int(os.environ["SLURM_NTASKS"])
    torch.distributed.init_process_group("gloo", rank=rank, world_size=size)
    total = torch.tensor([rank + 1])
    torch.distributed.all_reduce(total)
    print(f"sum over {size} ranks: {int(total)}")
    torch.distributed.destroy_process_group()
    return {}


def _ranks():
    if "PMIX_RANK" in os.environ:
        from mpi4py import MPI

        return MPI.COMM_WORLD.rank, MPI.COMM_WORLD.size, MPI.COMM_WORLD.bcast
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    return rank, size, lambda value: value if rank == 0 else []
