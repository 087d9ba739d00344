"""Landmark's blocks that were moved to the host: those that some rows chose come back for them, once for all.

Shapes: B batch, G key/value heads, X sets of query heads, T query rows, K chosen blocks, N blocks, U different ones
chosen, C tokens of a block, D head dimension.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .memory import Memory


class Source(NamedTuple):
    """What chosen blocks are read from, as the op `landmark_retrieve` wants it.

    Attributes:
        keys: [B, G, S, D].
        values: [B, G, S, D].
        marks: [B, G, N, D] keys of the landmarks.
        chosen: [B, X, T, K] which blocks of these; -1 for none.
        begin_B: row of each text's first block.
    """

    keys: Tensor
    values: Tensor
    marks: Tensor
    chosen: Tensor
    begin_B: Tensor


def fetched(memory: Memory, here: Source, block: int) -> Source:
    """The chosen blocks alone, from wherever they lie; `here.begin_B` says where on the device a text would begin."""
    assert memory.host is not None
    blocks_U = here.chosen.unique()
    blocks_U = blocks_U[blocks_U >= 0].long()
    if not len(blocks_U):
        return here
    inner = torch.arange(block, device=blocks_U.device)
    place_BR = here.begin_B[:, None] + (blocks_U[:, None] * block + inner).flatten()
    groups, held, dim = here.keys.shape[1:]
    index_BGRD = place_BR.clamp(0, held - 1)[:, None, :, None].expand(-1, groups, -1, dim)
    keys, values = here.keys.gather(2, index_BGRD), here.values.gather(2, index_BGRD)
    on_host = (place_BR < 0)[:, None, :, None]
    if bool(on_host.any()):
        old_keys, old_values = memory.host.take(place_BR + memory.host.count)
        keys, values = torch.where(on_host, old_keys, keys), torch.where(on_host, old_values, values)
    at = torch.where(here.chosen < 0, -1, torch.searchsorted(blocks_U, here.chosen.clamp(min=0).long()))
    return Source(keys, values, here.marks[:, :, blocks_U], at, torch.zeros_like(here.begin_B))
