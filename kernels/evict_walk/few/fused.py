"""The walk that looks among few keys: what it launches.

Shape legend: B batch, H query heads, T query rows, t of them at a time, N = 1 or G sets of rows, C most keys of a
cache, W columns, at least C + t, E query heads of a set, EP the same padded to a power of two, X most keys named.
"""

from typing import Any, NamedTuple

import torch
import triton

from ...dense_decode.fused import LOG2_E
from ...tiling import power_of_2
from ..ahead.fused import weights_kernel
from ..eager import Walked
from ..job import Job, State, products, room_of_weights
from ..lowest.fused import lowest_kernel, walk_lowest_kernel

# Keys that each row names, and warps of a walk.
NAMED, WARPS = 64, 8


class Few(NamedTuple):
    """A walk of some rows at a time, `step` of them: what is held, weights of these rows and their sums."""

    job: Job
    state: State
    after: torch.Tensor
    weight: torch.Tensor
    total: torch.Tensor
    gone: torch.Tensor
    step: int
    wide: int

    @classmethod
    def of(cls, job: Job, most_rows: int) -> "Few":
        """Nothing walked yet."""
        state, new = State.of(job), job.q_BHTD.shape[2]
        step, wide = min(new, most_rows), power_of_2(job.places + most_rows)
        gone = state.place.new_empty(state.held.numel() * wide)
        return cls(job, state, torch.empty_like(state.place), *room_of_weights(job, step, wide), gone, step, wide)

    def weigh(self, begin: int) -> tuple[int, ...]:
        """Weigh the rows from there on; (begin, t, T, S, C)."""
        job, plan, (batch, heads, new) = self.job, products(self.job, self.wide), self.job.q_BHTD.shape[:3]
        size = (begin, min(self.step, new - begin), new, job.k_BGSD.shape[2], job.places)
        weights_kernel[(triton.cdiv(size[1], plan["M"]), batch * heads)](
            job.q_BHTD, job.k_BGSD, self.state.place, job.number_BNS, self.weight, self.total, job.scale * LOG2_E,
            *size, *self.strides, **plan,
        )  # fmt: skip
        return size

    @property
    def strides(self) -> tuple[int, ...]:
        """Of queries and keys, but for the last."""
        return (*self.job.q_BHTD.stride()[:3], *self.job.k_BGSD.stride()[:3])

    @property
    def constants(self) -> dict[str, Any]:
        """What all kernels know of the columns."""
        return {"HEADS": self.job.each, "PADDED": power_of_2(self.job.each), "WIDE": self.wide}

    def of_walk(self, named: int, most_rows: int, least: float) -> dict[str, Any]:
        """Constants of a walk, and of its launch."""
        job = self.job
        return self.constants | {
            "GROUP": job.q_BHTD.shape[1] // job.k_BGSD.shape[1], "DIM": job.q_BHTD.shape[3], "NAMED": named,
            "SETS": job.number_BNS.shape[1], "ROWS": most_rows, "LEAST": least, "num_warps": WARPS, "num_stages": 1,
        }  # fmt: skip

    def rooms(self, *counts: int) -> list[torch.Tensor]:
        """Room for so many float32 of each set."""
        return [self.weight.new_empty(self.state.held.numel() * count) for count in counts]

    def integers(self, *counts: int) -> list[torch.Tensor]:
        """Room for so many int32 of each set."""
        return [self.gone.new_empty(self.state.held.numel() * count) for count in counts]

    def on(self) -> "Few":
        """What is held after these rows is held before the next."""
        return self._replace(state=self.state._replace(place=self.after), after=self.state.place)


def walk_lowest(job: Job, most_rows: int, least: float) -> Walked:
    """Walk where the last row alone marks.

    Args:
        job: What is to be walked.
        most_rows: Rows at a time, a power of two.
        least: Sum of the weights of a head below which some may be lost.

    Returns:
        How long each key is held, and the marks in the end.
    """
    few, number = Few.of(job, most_rows), job.number_BNS
    shape, pairs = few.of_walk(NAMED, most_rows, least), few.state.held.numel()
    (named, border), (low,) = few.integers(few.step * NAMED, few.step), few.rooms(few.step * NAMED * shape["PADDED"])
    for begin in range(0, job.q_BHTD.shape[2], few.step):
        size = few.weigh(begin)
        lowest_kernel[(size[1], pairs)](
            few.weight, few.total, number, job.recent_BT, few.state.place, named, low, border, *size,
            SETS=number.shape[1], NAMED=NAMED, **few.constants,
        )  # fmt: skip
        walk_lowest_kernel[(pairs,)](
            job.q_BHTD, job.k_BGSD, few.weight, few.total, number, job.budget_BT, job.recent_BT, named, low, border,
            few.gone, few.state.place, few.after, *few.state[1:], job.scale * LOG2_E, *size, job.factors[1],
            *few.strides, **shape,
        )  # fmt: skip
        few = few.on()
    return few.state.ended(job.q_BHTD.shape[2])
