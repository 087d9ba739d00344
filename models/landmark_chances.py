"""What query rows of landmark attention may choose at inference, and the turns that their places make.

All of it depends on places alone, so layers that allow as much share it.

Shapes: B batch, n heads, T rows of a text, L rows of a call, Q query rows at consecutive places, N blocks, K chosen
ones, M of the newest blocks, D head dimension.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from . import attend
from .landmark_places import Order, Places
from .rotation import Turning

# Rows attended at once, and elements of scores or queries made for them: a GPU would wait for launches.
AT_ONCE = {"cpu": (attend.ROWS_AT_ONCE, 2**24), "cuda": (2**14, 2**27)}


@dataclass(frozen=True)
class Chances:
    """What some query rows may choose, the same in every layer that allows as much.

    Attributes:
        k_BQ: blocks that a row may choose, the same for all rows of a chunk; int32.
        widest: the largest k.
        many: N.
        rotate: turns rows by positions.
    """

    places: Places
    k_BQ: Tensor
    widest: int
    many: int
    rotate: Turning

    def pieces(self, heads: int, dim: int) -> list[tuple[slice, Chances]]:
        """The rows, so many at once that what is made for them is small; by how many heads and dims they have."""
        (batch, new), (rows, made) = self.k_BQ.shape, AT_ONCE[self.k_BQ.device.type]
        each = max(1, min(rows, made // (batch * heads * max(self.many, dim * self.keep, dim))))
        slices = [slice(start, min(start + each, new)) for start in range(0, new, each)]
        return [(part, replace(self, places=self.places[part], k_BQ=self.k_BQ[:, part])) for part in slices]

    @property
    def keep(self) -> int:
        """K, the most blocks that any row chooses."""
        return min(self.widest, self.many)

    @cached_property
    def slot_K(self) -> Tensor:
        """Slots of the chosen blocks, oldest first, where none of them is recent."""
        return torch.arange(self.keep, device=self.k_BQ.device)

    @cached_property
    def recent_from(self) -> Tensor:
        """Number from which on a block stands one slot later, behind an empty one, [B, 1, Q, 1]; N for none."""
        recent = self.places.held > self.k_BQ
        return torch.where(recent, self.places.cached - self.k_BQ, self.many)[:, None, :, None]

    @cached_property
    def near_rows(self) -> Tensor:
        """Rows of the chunk so far, [B, 1, Q]; 0 for a row that is none."""
        places = self.places
        return (places.at - places.start + 1).masked_fill(places.none, 0)[:, None]

    @cached_property
    def before(self) -> Tensor:
        """Positions that stand before the chunk: all blocks while they are few, then k + 1 slots; [B, Q]."""
        return self.places.held.minimum(self.k_BQ + 1) * self.places.plan.length

    @cached_property
    def position(self) -> Tensor:
        """Of each row, [B, Q]."""
        return self.before + self.places.inside

    @cached_property
    def is_there(self) -> Tensor:
        """[B, Q, N] which blocks a row may choose."""
        number, cached = torch.arange(self.many, device=self.k_BQ.device), self.places.cached[..., None]
        return (number < cached) & (number >= cached - self.places.held[..., None])

    @cached_property
    def is_hidden(self) -> Tensor:
        """[B, 1, Q, N] which blocks a row may not choose."""
        return ~self.is_there[:, None]

    @property
    def slots(self) -> int:
        """Positions that k + 1 slots take at most; turns are counted from as many before 0."""
        return (self.widest + 1) * self.places.plan.length

    @cached_property
    def turns(self) -> Callable[[Tensor, Tensor], Tensor]:
        """Turns rows by any distance that slots, chunk and place in the chunk make, counted from `-slots`."""
        return self.rotate.between(-self.slots, self.slots + 2 * self.places.plan.long, self.k_BQ)

    def turned(self, x_BnTD: Tensor, by_BT: Tensor) -> Tensor:
        """Rows turned, each by one position, counted from `-slots`."""
        return self.turns(x_BnTD, by_BT[:, None, :, None])[:, :, :, 0]

    @cached_property
    def to_chunk(self) -> Tensor:
        """What turns queries to their places in the chunk, [B, Q]."""
        return self.places.inside + self.slots

    @cached_property
    def marks_to_chunk(self) -> Tensor:
        """What turns landmarks' keys to their places in their chunks, as the keys of their blocks are, [B, N]."""
        plan = self.places.plan
        number = torch.arange(self.many, device=self.k_BQ.device) % plan.blocks
        return (number * plan.length + (plan.block + self.slots)).expand(self.k_BQ.shape[0], -1)

    @cached_property
    def to_query(self) -> Tensor:
        """What turns queries to their positions, [B, Q]."""
        return self.position + self.slots

    @cached_property
    def to_first_slot(self) -> Tensor:
        """What turns queries back by the place of slot 0's landmark, as if keys in that slot were turned, [B, Q]."""
        return self.to_query - self.places.plan.block

    @cached_property
    def newest(self) -> tuple[Tensor, Tensor]:
        """Numbers of the M newest blocks, [B, Q, M], and what turns queries back to their landmarks, [B, 1, Q, M]."""
        age = torch.arange(self.keep, device=self.k_BQ.device)
        held, k, plan = self.places.held[..., None], self.k_BQ[..., None], self.places.plan
        slot = torch.where(held > k, k - age, held - 1 - age).clamp(min=0)
        # blocks before the first have numbers from behind: those of blocks that this row does not see
        number_BQM = (self.places.cached[..., None] - 1 - age) % self.many
        return number_BQM, (self.to_first_slot[..., None] - slot * plan.length)[:, None]


@dataclass(frozen=True)
class Stretch:
    """The rows of a call: T of its text, and behind them those of landmarks.

    Attributes:
        text: where the text's rows stand.
        rows: where all rows stand.
        marks_BT: landmarks whose keys a row of the text reads; float64.
        pieces: which rows at places are attended at once.
    """

    text: Order
    rows: Order
    marks_BT: Tensor
    pieces: list[tuple[slice, Chances]]
