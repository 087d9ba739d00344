"""A full window whose rows do not move: the row that each new one takes the place of, and sinks that stay near.

What a step does is the same in all layers that hold the same rows.

Shapes: B batch, H query heads, G key/value heads, S rows held, E sinks, D head dimension.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from . import attend
from .call import Call
from .ledger import Ledger
from .memory import Memory
from .rotation import Turn, Turning

SINKS = "sinks"  # their keys as they came, [B, G, E, D]


class Sinks(NamedTuple):
    """Where the sinks' keys lie, and by how much they are turned forward.

    Attributes:
        place_BE: rows that hold them; -1 where a text has none.
        turn: turns keys as they came, [B, G, E, D].
    """

    place_BE: Tensor
    turn: Turn

    @classmethod
    def of(cls, place_BS: Tensor, held_B1: Tensor, by_B1: Tensor, most: int, rotate: Turning) -> Sinks:
        """Find them.

        Args:
            place_BS: places of the rows held in their own texts; negative for padding and holes.
            held_B1: sinks that a text's budget has room for.
            by_B1: positions by which they are turned.
            most: E.
            rotate: the model's rotary embedding.
        """
        which = torch.arange(most, device=place_BS.device)
        is_it_BES = place_BS[:, None] == which[:, None]
        is_there = is_it_BES.any(-1) & (which < held_B1)
        place_BE = torch.where(is_there, is_it_BES.int().argmax(-1), -1)
        return cls(place_BE, rotate.by(by_B1.expand(-1, most)))

    def put(self, memory: Memory) -> None:
        """Write the sinks' keys, turned from the original ones, so that turning them never adds up rounding."""
        self.turn.put(memory.extra[SINKS], self.place_BE, memory.keys.view)


class Step(NamedTuple):
    """What a single row of each text attends in a pinned memory.

    Attributes:
        read_B11: how many rows.
        lo_B, hi_B: [lo, hi) of the rows held; int32.
        sinks: None where they stand where they did.
    """

    read_B11: Tensor
    lo_B: Tensor
    hi_B: Tensor
    sinks: Sinks | None

    def attend(self, q_BHTD: Tensor, memory: Memory, call: Call, ledger: Ledger) -> Tensor:
        """Attend in one layer; returns [B, H, 1, D] and counts what it read."""
        ledger.count(memory, call, self.read_B11.expand(-1, memory.keys.view.shape[1], -1), 0.0)
        if self.sinks is not None:
            self.sinks.put(memory)
        return attend.between(q_BHTD, memory, self.lo_B, self.hi_B, call)


def slot_of(place_BS: Tensor, budget_B: Tensor, sinks: int, seen: int | Tensor) -> Tensor:
    """The row to give up, [B]: the last hole or padding of a text that is not full, else its oldest but sinks."""
    column, text = torch.arange(place_BS.shape[1], device=place_BS.device), place_BS >= 0
    room = (text.sum(-1) < budget_B)[:, None]
    held = (budget_B - 1).clamp(max=sinks)[:, None]
    worth = torch.where(text, -place_BS, torch.where(room, column + seen, -2 * seen))
    # not masked_fill: it asks the host for a number that is on the device
    return torch.where(text & (place_BS < held), -2 * seen, worth).argmax(-1)


def given_up(memory: Memory, slot_B: Tensor) -> tuple[Tensor, Tensor]:
    """The slots, and the numbers of the rows held, changed in place: layers that hold the same rows share them."""
    assert memory.clock is not None
    assert memory.columns is not None
    number = memory.clock.row.expand(slot_B.shape[0], 1, 1)
    return slot_B, memory.columns.scatter_(2, slot_B[:, None, None], number)
