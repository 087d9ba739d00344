"""Ranks that are joined: one place for what they must tell each other beside the model's own collectives."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from ..models import shard
from .ranks import Ranks

PATIENCE_S = 300.0  # a collective that waits longer has lost a peer


@dataclass
class World:
    """Joined ranks on one kind of device.

    Raises:
        ValueError: more ranks than GPUs on this host.
    """

    ranks: Ranks
    device: str
    patience_s: float = PATIENCE_S
    control: Any = None

    def join(self) -> None:
        """Start the groups of torch.distributed and AxoNN, where there is more than one rank."""
        if self.device == "cuda":
            # how cuBLAS finds the same sums each time, read before its first product; 32 MiB, Hopper's own default
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            self._take_gpu()
        if self.ranks.size > 1:
            backend = "nccl" if self.device == "cuda" else "gloo"
            shard.start(self.ranks.rank, self.ranks.size, self.ranks.meeting(), backend, self.patience_s)
            # a group of its own: a rank that failed tells the others here while they still wait in the model's
            self.control = dist.new_group(backend="gloo", timeout=timedelta(seconds=3 * self.patience_s))

    def rejoin(self) -> None:
        """Leave everything and join anew: after a failure on some ranks only, their collectives no longer match."""
        shard.stop()
        self.join()

    def leave(self) -> None:
        """Close the groups."""
        shard.stop()

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, on every rank.

        Raises:
            ConnectionError: a rank has ended, or does not come.
        """
        if self.ranks.size == 1:
            return [value]
        values: list[Any] = [None] * self.ranks.size
        try:
            dist.all_gather_object(values, value, group=self.control)
        except RuntimeError as error:
            lost = f"rank {self.ranks.rank} has lost another rank, which says why or was killed"
            raise ConnectionError(lost) from error
        return values

    def sum(self, value: torch.Tensor) -> torch.Tensor:
        """Sum of a CPU tensor over the ranks, on every rank."""
        if self.ranks.size > 1:
            dist.all_reduce(value, group=self.control)
        return value

    def _take_gpu(self) -> None:
        found = torch.cuda.device_count()
        if not found:
            raise ValueError("no CUDA GPU is visible: set `device: cpu` in the sweep, or --set device=cpu")
        torch.cuda.set_device(self.ranks.local_rank % found)
        if self.ranks.size > 1 and found == 1 and self.ranks.local_rank > 0 and _shares_gpu():
            raise ValueError(f"{self.ranks.size} ranks need as many GPUs, this host shows 1: use --set ranks=1")


def _shares_gpu() -> bool:
    """One visible GPU is right where the launcher gave each rank its own, wrong where all see the same."""
    return "SLURM_STEP_GPUS" not in os.environ and "CUDA_VISIBLE_DEVICES" not in os.environ
