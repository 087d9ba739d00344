"""Sums over the ranks of a group: in one step through memory that all of them see, or by the group's own collective.

A decode step sums two small tensors a layer. What a ring or a tree costs there is its latency, not its bytes: with
symmetric memory each rank writes once and reads what the others wrote.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

SMALL_BYTES = 512 * 1024  # above, each rank would read more than a ring moves
PLACES = 2  # used in turn: a slow peer may still read the one before


class RankSum:
    """Adds up tensors of equal shape, every rank alike.

    Attributes:
        how: what does it, for the record: a collective that was meant to be faster and was refused says so and why.
    """

    def __init__(self, group: Any, device: torch.device) -> None:
        self.group, self.how = group, f"{dist.get_backend(group)} all-reduce"
        self._places: dict[tuple[torch.Size, torch.dtype], list[Tensor]] = {}
        self._turn = 0
        self._one_shot = False
        if device.type == "cuda":
            self._try_one_shot(device)

    def _try_one_shot(self, device: torch.device) -> None:
        refusal = ""
        try:
            self._place(torch.zeros(1, 16, dtype=torch.bfloat16, device=device))
        except (RuntimeError, ImportError, AttributeError) as error:
            refusal = str(error).strip().splitlines()[0]
        able = torch.tensor([not refusal], dtype=torch.int32, device=device)
        dist.all_reduce(able, op=dist.ReduceOp.MIN, group=self.group)
        self._one_shot = bool(able.item())
        if self._one_shot:
            self.how = "one-shot all-reduce over symmetric memory"
        else:
            self.how += f"; symmetric memory was refused: {refusal or 'by another rank'}"

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
