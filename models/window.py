"""A window of recent rows and sinks, for many query rows: the same in all layers of one budget.

Shapes: B batch, T query rows, S rows held, E sinks, n heads, D head dimension.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from . import lifetime
from .call import Call

Turn = Callable[[Tensor], Tensor]


class Window(NamedTuple):
    """What query rows attend.

    Attributes:
        until: [B, 1, S] int32 the first query row that no longer has each row; 0 of sinks, which are attended apart.
        read: [B, 1, T] rows that each query row attends, sinks too.
        sinks: [B, 1, E, 1] which of the rows held are the sinks.
        hidden: [B, 1, T, E] which of them each query row does not attend.
        near: turns queries to where the sinks stand for them; None where they stand where they did.
    """

    until: Tensor
    read: Tensor
    sinks: Tensor
    hidden: Tensor
    near: Turn | None


def window_of(
    place_BS: Tensor, budget_B1: Tensor, sinks: int, call: Call, turn: Callable[[Tensor], Turn] | None
) -> Window:
    """Lay out the window of all query rows.

    Args:
        place_BS: places of the rows held in their own texts; negative for padding and holes.
        budget_B1: rows that each query row attends, where there are as many.
        sinks: E, fewer where the budget has no room for them.
        call: the call.
        turn: gives the turn by some positions, where sinks stand as near as the cache is long; None where they do not.
    """
    begun, which = (call.numbers_T[0] - call.first)[:, None], torch.arange(sinks, device=place_BS.device)
    held_sinks = (budget_B1 - 1).clamp(max=sinks)
    until = (place_BS + (budget_B1 - held_sinks) - begun).clamp(min=0).masked_fill(place_BS < 0, 0)
    is_sink = (place_BS >= 0) & (place_BS < held_sinks)
    read = lifetime.held_count(torch.where(is_sink, call.new, until)[:, None], call)
    at = (place_BS[:, None] == which[:, None]).int().argmax(-1)[:, None, :, None]
    seen = (which < held_sinks)[:, None] & (which < call.context_BT[..., None])
    near = turn(-(call.context_BT - budget_B1).clamp(min=0)) if turn is not None and sinks else None
    # without sinks the window alone is left, and tiles of keys before it are not read
    return Window(until.masked_fill(is_sink, 0)[:, None].int(), read, at, ~seen[:, None], near)
