"""Rows of every rank in memory that all ranks of a host can read, and the flags by which they meet there.

Shapes: X ranks, C rows that there is room for, E hidden size.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..kernels.sum_norm.meeting import Meeting, addresses_of

PLACES = 2  # used in turn: a slow rank may still read the one before
ALIGNED = 256  # bytes


class SharedRows:
    """Two places [C, E] of each rank for what it adds to a sum.

    Making one is collective: every rank of the group does, for the same rows.

    Attributes:
        places: for each place the parts of all ranks, [C, E] each.
        meetings: for each place.

    Raises:
        RuntimeError: there is no such memory here, or what a rank writes is not what the others read.
    """

    def __init__(self, group: Any, rows: int, width: int, like: Tensor) -> None:
        import torch.distributed._symmetric_memory as symmetric  # noqa: PLC0415 - only GPUs have it

        ranks, rank = dist.get_world_size(group), dist.get_rank(group)
        part = _aligned(rows * width * like.element_size())
        whole = symmetric.empty(PLACES * part + _aligned(rows * ranks * 4), dtype=torch.uint8, device=like.device)
        handle = symmetric.rendezvous(whole, group)
        # a tensor of a pool does not begin where the memory does that ranks share
        apart = whole.data_ptr() - handle.get_buffer(rank, whole.shape, whole.dtype).data_ptr()
        views = tuple(handle.get_buffer(peer, whole.shape, whole.dtype, apart) for peer in range(ranks))
        if views[rank].data_ptr() != whole.data_ptr():
            raise RuntimeError("symmetric memory does not say where a tensor lies in it")
        _prove(views, rank, group)
        used = rows * width * like.element_size()
        self.places = [
            tuple(view[place * part :][:used].view(like.dtype).view(rows, width) for view in views)
            for place in range(PLACES)
        ]
        flags = tuple(view[PLACES * part :][: rows * ranks * 4].view(torch.int32) for view in views)
        count_C = torch.zeros(rows, dtype=torch.int32, device=like.device)
        # the same flags and counts: sums are numbered through, whichever place holds the parts
        self.meetings = [
            Meeting(addresses_of(parts), addresses_of(flags), count_C, rank, (*flags, whole)) for parts in self.places
        ]


def _aligned(count: int) -> int:
    return -(-count // ALIGNED) * ALIGNED


def _prove(views: tuple[Tensor, ...], rank: int, group: Any) -> None:
    """Write, let all others read, and leave zeros.

    Raises:
        RuntimeError: another rank's memory shows something else than what it wrote.
    """
    views[rank].fill_(rank + 1)
    _wait(views[rank], group)
    found = [(int(view.min()), int(view.max())) for view in views]
    _wait(views[rank], group)
    views[rank].zero_()
    _wait(views[rank], group)
    if found != [(peer + 1, peer + 1) for peer in range(len(views))]:
        raise RuntimeError(f"memory shared by {len(views)} ranks shows {found} to rank {rank}")


def _wait(mine: Tensor, group: Any) -> None:
    if mine.is_cuda:
        torch.cuda.synchronize(mine.device)
    dist.barrier(group=group)
