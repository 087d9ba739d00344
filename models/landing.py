"""A single row turned, projected and written in one launch, where a method does nothing else with it.

Shapes: B texts, H query heads, G key/value heads, D head dimension, R leading columns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernels.append_row import OP as APPEND_ROW
from .memory import Memory
from .rows import Rows


def _no_more() -> None:
    pass


@dataclass(frozen=True)
class Landing:
    """How a single row is kept.

    Attributes:
        lead: [G, D, R] leading columns of the basis that keys are kept in; of no columns: keys are kept as they are.
        rest: [G, D, D - R] the others.
        leads: rows of the first columns of the keys as they are kept, once more beside them, in any layout.
        sums: [B, G, 1, D] float32, to which the row's values are added; default: none is.
        after: what is done once it is.
        over: says, and notes, over which row of each text [B] it is written; default: behind the last.
    """

    lead: Tensor
    rest: Tensor
    leads: Rows | None = None
    sums: Tensor | None = None
    after: Callable[[], None] = _no_more
    over: Callable[[], Tensor] | None = None

    @classmethod
    def plain(cls, memory: Memory) -> Landing:
        """As it is."""
        keys = memory.keys.view
        nothing = keys.new_empty(keys.shape[1], keys.shape[3], 0)
        return cls(nothing, nothing)

    def write(
        self, memory: Memory, q_BHD: Tensor, k_BGD: Tensor, v_BGD: Tensor, cos_BD: Tensor, sin_BD: Tensor
    ) -> Tensor:
        """Turn, project and append the row to a pinned memory; the queries [B, H, D] as keys are kept."""
        assert self.sums is None or memory.copies == 1, "a sum is of values that are held once"
        if memory.copies > 1:
            k_BGD, v_BGD = (row.repeat_interleave(memory.copies, 1) for row in (k_BGD, v_BGD))
        place_B = memory.keys.place.expand(q_BHD.shape[0]) if self.over is None else self.over()
        keys, values = memory.keys.view, memory.values.view
        leads = keys[..., :0] if self.leads is None else self.leads.view
        sums = keys.new_empty(*keys.shape[:2], 0, dtype=torch.float32) if self.sums is None else self.sums[:, :, 0]
        query: Tensor = APPEND_ROW(
            q_BHD, k_BGD, v_BGD, cos_BD, sin_BD, self.lead, self.rest, place_B, keys, values, leads, sums
        )[0]
        if self.over is None:
            memory.landed(k_BGD[:, :, None])
        else:
            memory.advance(1)
        self.after()
        return query
