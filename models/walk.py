"""The steps of an eviction over the rows of one call, one after the other, or all of them by a kernel.

Shapes: B batch, H query heads, G key/value heads, N sets of rows (1 or G), T query rows, t some of them, S rows held.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ..kernels.evict_walk import OP as EVICT_WALK
from . import attend
from .budget import amount_of
from .call import Call
from .memory import Memory

if TYPE_CHECKING:
    from .stepwise import Stepwise


class Marking(NamedTuple):
    """What a row does to the marks of the rows that it attends: carry * mark + share * its heads' weights, summed.

    Attributes:
        sets: Sets of rows that are marked apart: 1, or one for each key/value head.
        carry: 1 where marks add up, 0 where the last row alone marks.
        share: Factor of the weights.
    """

    sets: int
    carry: float
    share: float


def walk_at_once(method: Stepwise, q_BHTD: Tensor, memory: Memory, call: Call) -> Tensor:
    """Walk all rows by a kernel and leave their marks; rows held must see all that is held before them.

    Returns:
        [B, G, S] the query row, counted from 0, from which on each row held is dropped; T if it stays, 0 if it is none.
    """
    groups, marks = memory.keys.view.shape[1], memory.aux["mark"].view[..., 0]
    marking = method.marking(q_BHTD.shape[1], groups)
    numbers = memory.numbers_BNS(q_BHTD.shape[0]).expand(-1, groups, -1)[:, : marking.sets]
    number = numbers.masked_fill(numbers < call.first[:, None, None], -1).int()
    key = ("walk", amount_of(method, memory.site), method.cost(memory, call), call.phase, memory.prompt is None)
    budget, recent = call.once(key, lambda: _bounds(method, memory, call))
    until, mark = EVICT_WALK(
        q_BHTD, memory.keys.view, marks[:, : marking.sets], number, budget, recent, call.scale, marking.carry,
        marking.share, method.most_rows(memory, call),
    )  # fmt: skip
    marks.copy_(mark.expand_as(marks))
    found: Tensor = until.expand(-1, groups, -1)
    return found


def _bounds(method: Stepwise, memory: Memory, call: Call) -> tuple[Tensor, Tensor]:
    """Most rows that each query row holds, and last ones that stay, int32."""
    budget = method.rows_BT(memory, call)
    return budget.int(), method.protected(budget).int()


class Walk:
    """The rows of one call of a `Stepwise`, one after the other: drop, attend, mark."""

    def __init__(self, method: Stepwise, memory: Memory, call: Call) -> None:
        groups = memory.keys.view.shape[1]
        self.method, self.memory, self.call = method, memory, call
        self.marks = memory.aux["mark"].view[..., 0]
        self.numbers = memory.numbers_BNS(call.first.shape[0]).expand(-1, groups, -1)
        self.text = self.numbers >= call.first[:, None, None]
        self.held = self.text & (self.numbers < call.seen - call.new)
        self.budget = method.rows_BT(memory, call)
        self.latest = call.numbers_T - method.protected(self.budget)  # [B, T] of the rows that may be dropped
        self.visible = attend.visible_BNTS(memory, call)

    def rows(self, q_BHTD: Tensor, piece: Tensor) -> Tensor:
        """Which rows each of these attends, [B, G, t, S]; marks them."""
        scores = attend.group_scores(q_BHTD[:, :, piece], self.memory.keys.view, "none") * self.call.scale
        keep = []
        for place, row in enumerate(piece.tolist()):
            seen = self.step(row)
            each = seen.repeat_interleave(scores.shape[1] // seen.shape[1], 1)
            share_ = scores[:, :, place].masked_fill(~each, -torch.inf).softmax(-1).masked_fill(~each, 0.0)
            self.note(row, share_[:, :, None])
            keep.append(seen)
        return torch.stack(keep, 2)

    def note(self, row: int, weights_BH1S: Tensor) -> None:
        """Mark what a row attended; padding rows attend nothing."""
        real = self.call.context_BT[:, row, None, None] > 0
        self.marks.copy_(torch.where(real, self.method.mark(self.marks, weights_BH1S), self.marks))

    def step(self, row: int) -> Tensor:
        """Let the row in; of one too many the lowest mark that is not recent is dropped. What it sees, [B, G, S]."""
        number, budget = self.call.numbers_T[row], self.budget[:, row]
        self.held = self.held | (self.text & (self.numbers == number))
        full = self.held.sum(-1, keepdim=True) > budget[:, None, None]
        old = self.held & (self.numbers <= self.latest[:, row, None, None])
        lowest = self.marks.masked_fill(~old, torch.inf).argmin(-1, keepdim=True)
        self.held = self.held.scatter(2, lowest, self.held.gather(2, lowest) & ~full)
        return self.held & self.visible[:, :, row]
