"""What is to be walked, and what a walk carries on.

Shape legend: B batch, H query heads, G KV heads, T query rows (the last T of the S key rows), t of them at a time, S
key rows, N = 1 or G sets of rows, C places of a cache, W columns.
"""

from typing import Any, NamedTuple

import torch

from ..interpreter import upcasts
from ..many_rows import Tiles, tiles_of
from ..tiling import power_of_2
from .eager import Walked

TILES = Tiles(16, 128, 4, 3)


class Job(NamedTuple):
    """What is to be walked; `factors` are carry and share, `places` those of a cache."""

    q_BHTD: torch.Tensor
    k_BGSD: torch.Tensor
    mark_BNS: torch.Tensor
    number_BNS: torch.Tensor
    budget_BT: torch.Tensor
    recent_BT: torch.Tensor
    scale: float
    factors: tuple[float, float]
    places: int

    @property
    def each(self) -> int:
        """Query heads of a set."""
        return self.q_BHTD.shape[1] // self.number_BNS.shape[1]


class State(NamedTuple):
    """What a walk carries on, as the kernels name it."""

    place: torch.Tensor
    held: torch.Tensor
    until: torch.Tensor
    last: torch.Tensor

    @classmethod
    def of(cls, job: Job) -> "State":
        """Keys held from the start at the first places, in order; S at the others."""
        number, (new, rows) = job.number_BNS, (job.q_BHTD.shape[2], job.k_BGSD.shape[2])
        column = torch.arange(rows - new, dtype=torch.int32, device=number.device)
        held = number[..., : rows - new] >= 0
        order = torch.where(held, column, rows).sort(-1).values[..., : job.places]
        place = torch.full((*number.shape[:2], job.places), rows, dtype=torch.int32, device=number.device)
        place[..., : order.shape[-1]] = order
        until = torch.full_like(number, new).masked_fill_(number < 0, 0)
        return cls(place, held.sum(-1, dtype=torch.int32), until, job.mark_BNS.clone())

    def ended(self, new: int) -> Walked:
        """What is left after `new` rows."""
        return Walked(self.until, self.last.masked_fill_(self.until < new, 0.0))


def products(job: Job, wide: int) -> dict[str, Any]:
    """Constants of the products: tiles of few rows, which are many even where few rows are walked at a time."""
    q, groups, dim = job.q_BHTD, job.k_BGSD.shape[1], job.q_BHTD.shape[3]
    plan = tiles_of(TILES, q.element_size(), dim)
    return {
        "KV_HEADS": groups, "GROUP": q.shape[1] // groups, "SETS": job.number_BNS.shape[1], "WIDE": wide, "DIM": dim,
        "BLOCK_DIM": max(16, power_of_2(dim)), "M": plan.queries, "N": plan.keys, "UPCAST": upcasts(q.dtype),
        "num_warps": plan.num_warps, "num_stages": plan.num_stages,
    }  # fmt: skip


def room_of_weights(job: Job, step: int, wide: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Room for the weights of so many rows, and for their sums."""
    weight = job.q_BHTD.new_empty(job.q_BHTD.shape[:2].numel() * step * wide, dtype=torch.float32)
    return weight, weight.new_empty(job.q_BHTD.shape[:2].numel() * step, dtype=torch.float64)
