"""A stand-in for the harness, named to GroupJob by `runner`: cells that only take time, on ranks that MPI joined."""

import os
import signal
import time
from datetime import UTC, datetime
from pathlib import Path

from lacuna.results.record import Record


def run(cells, store, cell_timeout_s):
    """Sleep FAKE_CELL_S for each cell; rank 0 writes, and notes in FAKE_LOG what it computed."""
    rank, size, share = _ranks()
    for cell in share(list(cells)):
        started = datetime.now(UTC).isoformat()
        time.sleep(float(os.environ["FAKE_CELL_S"]))
        share(None)  # as tensor parallel ranks do, wait for each other
        if rank == 0:
            status = "error" if cell.method.name == "broken" else "ok"
            reason, gpus = "planned" * (status != "ok"), {"gpus": os.environ.get("CUDA_VISIBLE_DEVICES", "")}
            store.put(Record(cell, status, reason, metrics={"ranks": size}, provenance=gpus, started=started))
            with Path(os.environ["FAKE_LOG"]).open("a") as log:
                log.write(f"{cell.key}\n")
    return {}


def lose_rank(cells, store, cell_timeout_s):
    """As when a rank is lost while the first cell runs."""
    store.start(cells[0].key)
    raise ConnectionError("rank 1 is gone")


def break_off(cells, store, cell_timeout_s):
    """As when a rank is lost."""
    raise ZeroDivisionError("rank 1 is gone")


def meet(cells, store, cell_timeout_s):
    """Join the ranks as the harness does, and add them up."""
    import torch

    ranks = _join()
    total = torch.ones(1)
    torch.distributed.all_reduce(total)
    print(f"{ranks.launcher}: sum over {ranks.size} ranks is {int(total)}")
    torch.distributed.destroy_process_group()
    return {}


def run_out(cells, store, cell_timeout_s):
    """Cells as the harness runs them, of which `greedy` has its last rank killed, as the kernel does without memory."""
    import torch

    ranks = _join()
    for cell in cells:
        started = datetime.now(UTC).isoformat()
        if ranks.rank == 0:
            store.start(cell.key)
        torch.distributed.barrier()
        if cell.method.name == "greedy" and ranks.rank == ranks.size - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        torch.distributed.barrier()
        if ranks.rank == 0:
            store.put(Record(cell, "ok", started=started))
    return {}


def _join():
    import torch

    from lacuna.harness.ranks import find_ranks

    ranks = find_ranks()
    torch.distributed.init_process_group("gloo", ranks.meeting(), rank=ranks.rank, world_size=ranks.size)
    return ranks


def _ranks():
    if "PMIX_RANK" in os.environ:
        from mpi4py import MPI

        return MPI.COMM_WORLD.rank, MPI.COMM_WORLD.size, MPI.COMM_WORLD.bcast
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    return rank, size, lambda value: value if rank == 0 else []
