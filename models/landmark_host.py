"""Landmark's blocks that were moved to the host: those that some rows chose come back for them, once for all.

Shapes: B batch, H query heads, G key/value heads, T query rows, K chosen blocks, C tokens of a block, U different
blocks chosen, D head dimension.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .host_rows import HostRows

Turn = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Fetch:
    """What the rows of a query need to know.

    Attributes:
        host: the rows.
        block: C.
        chosen: [B, H, T, K] blocks of each text, -1 for none.
        index: [B, H, T, K * C] place of each row among those on the device; negative: on the host.
        begins: [B] place on the device at which each text's first token would lie.
    """

    host: HostRows
    block: int
    chosen: Tensor
    index: Tensor
    begins: Tensor

    def into(self, keys: Tensor, values: Tensor, turn: Turn) -> tuple[Tensor, Tensor]:
        """Keys (turned by their place within the block) and values [B, H, T, K * C, D], the host's rows put in."""
        of_block = self.chosen.repeat_interleave(self.block, 3)
        lies_there = (self.index < 0) & (of_block >= 0)
        if not bool(lies_there.any()):
            return keys, values
        blocks = of_block[lies_there].unique()
        inner = torch.arange(self.block, device=blocks.device)
        rows_R = (blocks[:, None] * self.block + inner).flatten()
        old_k, old_v = self.host.take(self.begins[:, None] + rows_R + self.host.count)
        turned = turn(old_k, inner.repeat(len(blocks))[None])
        found = torch.searchsorted(blocks, self.chosen.clamp(min=0)).clamp(max=len(blocks) - 1)
        at = (found[..., None] * self.block + inner).flatten(3)
        heads, where = self.chosen.shape[1], lies_there[..., None]
        return torch.where(where, gathered(turned, at, heads), keys), torch.where(
            where, gathered(old_v, at, heads), values
        )


def gathered(rows_BGSD: Tensor, index_BHTK: Tensor, heads: int) -> Tensor:
    """Rows of each query head's key/value head, [B, H, T, K, D]."""
    batch, groups = rows_BGSD.shape[:2]
    at_batch = torch.arange(batch, device=rows_BGSD.device)[:, None, None, None]
    at_head = torch.arange(heads, device=rows_BGSD.device)[None, :, None, None] // (heads // groups)
    return rows_BGSD[at_batch, at_head, index_BHTK]
