"""Rows that leave one after the other: which with which query row, and until when each is held.

At most one leaves with each query row, so that two lists of numbers say all that a mask of T x S would.

Shapes: B batch, G key/value heads, N sets of rows (1 or G), T query rows, S rows held, K rows dropped.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from . import attend
from .call import Call
from .evict import text
from .lifetime import held_count
from .memory import Memory
from .residual_state import Dropped


class Leaving(NamedTuple):
    """The course of T query rows.

    Attributes:
        left: [B, G, T] which of the rows held leaves when each of them comes; 0 where none does.
        leaves: [B, G, T] whether one does.
        until: [B, G, S] the first query row that no longer has each row held; T: stays, 0: padding and holes.
        read: [B, G, T] rows that each of them attends exactly, and the one that leaves, which is read once more.
        stay: [B, G, K] indices of the rows that are held after the last of them.
    """

    left: Tensor
    leaves: Tensor
    until: Tensor
    read: Tensor
    stay: Tensor


def course(memory: Memory, call: Call, left_BNT: Tensor) -> Leaving:
    """All that follows from which row leaves when."""
    left = left_BNT.expand(-1, memory.keys.view.shape[1], -1)
    return course_until(call, left, until_of(memory, call, left))


def course_until(call: Call, left: Tensor, until: Tensor, most: int | None = None) -> Leaving:
    """The same where it is also known until when each row is held, and perhaps how many rows a head holds at most."""
    leaves = left >= 0
    read, stay = held_count(until, call) + leaves, attend.rows_of(until >= call.new, most).contiguous()
    return Leaving(left.clamp(min=0), leaves, until, read, stay)


def until_of(memory: Memory, call: Call, left_BGT: Tensor) -> Tensor:
    """The first query row that no longer has each row held, [B, G, S]: T where none, 0 for padding and holes."""
    stay = text(memory, call).expand(-1, left_BGT.shape[1], -1).int() * call.new
    row = torch.arange(call.new, device=stay.device, dtype=stay.dtype).expand_as(left_BGT)
    spare = torch.cat([stay, stay[..., :1]], -1)  # where rows that do not leave may write
    index = torch.where(left_BGT >= 0, left_BGT, stay.shape[-1])
    return spare.scatter(2, index, row)[..., :-1].contiguous()


def left_of(memory: Memory, call: Call, until_BGS: Tensor) -> Tensor:
    """The other way round: which row leaves when each query row comes, [B, G, T]."""
    leaves = text(memory, call) & (until_BGS < call.new)
    index = torch.arange(until_BGS.shape[2], device=until_BGS.device).expand_as(until_BGS)
    left = index.new_full((*until_BGS.shape[:2], call.new + 1), -1)  # a spare place for rows that stay
    return left.scatter(2, torch.where(leaves, until_BGS, call.new).long(), index)[..., : call.new]


def dropped_of(memory: Memory, call: Call, index_BGK: Tensor, there_BGK: Tensor) -> Dropped:
    """Rows of these indices, as far as they are there."""
    at = index_BGK[..., None]
    keys, values = (
        part.view.gather(2, at.expand(-1, -1, -1, part.view.shape[3])) for part in (memory.keys, memory.values)
    )
    return Dropped(call.root_scaled(keys), values, there_BGK)
