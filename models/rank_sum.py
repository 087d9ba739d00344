"""Sums over the ranks of a group: in one step through memory that all of them see, or by the group's own collective.

A decode step sums two small tensors a layer. What a ring or a tree costs there is its latency, not its bytes: with
symmetric memory each rank writes once and reads what the others wrote. Where a norm follows, the ranks meet in its
kernel, and the sum takes no launch of its own.

Shapes: B texts, E hidden size, F inputs of this rank.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from ..kernels.skinny_linear import OP as SKINNY_LINEAR
from ..kernels.sum_norm.meeting import Meeting
from .shared_rows import PLACES, SharedRows

SMALL_BYTES = 512 * 1024  # above, each rank would read more than a ring moves


class Parts(NamedTuple):
    """A sum that is still to be made: what each rank adds, [B or more, E], and where they meet."""

    parts: tuple[Tensor, ...]
    meeting: Meeting


class RankSum:
    """Adds up tensors of equal shape, every rank alike.

    Attributes:
        how: what does it, for the record: a way that was meant to be faster and was refused says so and why.
    """

    def __init__(self, group: Any, device: torch.device) -> None:
        self.group, self.how = group, f"{dist.get_backend(group)} all-reduce"
        self._places: dict[tuple[torch.Size, torch.dtype], list[Tensor]] = {}
        self._shared: dict[tuple[int, int, torch.dtype], SharedRows] = {}
        self._turn = 0
        self._one_shot = self._meets = False
        if device.type == "cuda":
            self._try_memory(device)

    def _try_memory(self, device: torch.device) -> None:
        probe = torch.zeros(1, 16, dtype=torch.bfloat16, device=device)
        refused = self._agreed(lambda: self._place(probe), device)
        if refused:
            self.how += f"; symmetric memory was refused: {refused}"
            return
        self._one_shot, self.how = True, "one-shot all-reduce over symmetric memory"
        refused = self._agreed(lambda: SharedRows(self.group, 1, 16, probe), device)
        self._meets = not refused
        self.how += f"; not with the norm: {refused}" if refused else ", in fused layers with the norm in one launch"

    def _agreed(self, work: Callable[[], object], device: torch.device) -> str:
        """Why some rank cannot do it; empty if all can."""
        refusal = ""
        try:
            work()
        except (RuntimeError, ImportError, AttributeError) as error:
            refusal = str(error).strip().splitlines()[0]
        able = torch.tensor([not refusal], dtype=torch.int32, device=device)
        dist.all_reduce(able, op=dist.ReduceOp.MIN, group=self.group)
        return "" if bool(able.item()) else refusal or "by another rank"

    def _place(self, like: Tensor) -> Tensor:
        """Memory that the peers see, of this shape; made before a capture, at the first sum of that shape."""
        key = (like.shape, like.dtype)
        if key not in self._places:
            import torch.distributed._symmetric_memory as symmetric  # noqa: PLC0415 - only GPUs have it

            made = [symmetric.empty(like.shape, dtype=like.dtype, device=like.device) for _ in range(PLACES)]
            for place in made:
                symmetric.rendezvous(place, self.group)
            self._places[key] = made
        self._turn = (self._turn + 1) % PLACES
        return self._places[key][self._turn]

    def __call__(self, part: Tensor) -> Tensor:
        """The sum of every rank's `part`; `part` may be overwritten."""
        if self._one_shot and part.nbytes <= SMALL_BYTES:
            place = self._place(part)
            place.copy_(part)
            total: Tensor = torch.ops.symm_mem.one_shot_all_reduce(place, "sum", self.group.group_name)
            return total
        dist.all_reduce(part, group=self.group)
        return part

    def parts(self, x_BF: Tensor, weight_EF: Tensor, place: int) -> Parts | None:
        """This rank's product where the others can read it; nothing if they cannot, or if it is large.

        Args:
            x_BF: this rank's inputs.
            weight_EF: this rank's slice.
            place: 0 or 1, of two sums that follow each other not the same.
        """
        rows, width = x_BF.shape[0], weight_EF.shape[0]
        if not self._meets or rows * width * x_BF.element_size() > SMALL_BYTES:
            return None
        key = (rows, width, x_BF.dtype)
        if key not in self._shared:
            self._shared[key] = SharedRows(self.group, rows, width, x_BF)
        shared = self._shared[key]
        parts, meeting = shared.places[place], shared.meetings[place]
        SKINNY_LINEAR(x_BF, weight_EF, None, parts[meeting.rank])
        return Parts(parts, meeting)
