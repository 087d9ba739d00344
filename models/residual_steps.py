"""Single rows beside a state: exact attention in two launches, and steps of a full cache whose rows do not move.

A pinned cache stays full: the new row takes the place of the one that leaves, so rows stand in no order, and nothing is
asked of the host.

Shapes: B batch, H query heads, G key/value heads, S rows held, D head dimension.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..kernels.marked_decode import OP as MARKED_DECODE
from ..kernels.swap_row import OP as SWAP_ROW
from .call import Call
from .memory import Memory
from .residual_state import Dropped, Share


def prepare(memory: Memory, recent_B: Tensor, beside: float) -> None:
    """Note what all steps of a full cache go by.

    Args:
        memory: about to be pinned.
        recent_B: last rows that never leave, the new one among them.
        beside: bytes that each step reads beside rows and marks.
    """
    assert memory.first is not None
    lo_B, hi_B = _span(memory, memory.first)
    held = (hi_B - lo_B)[:, None].expand(-1, memory.keys.view.shape[1])[..., None].long()
    read = held + 1  # the row that leaves is read once more
    marks = read[:, : memory.live].sum(1).double() * memory.aux["mark"].row_bytes
    kept = (read - 1)[:, : memory.live].sum((1, 2))
    there = torch.ones_like(read, dtype=torch.bool)
    memory.given = {"recent": recent_B, "lo": lo_B, "hi": hi_B, "read": read, "kept": kept, "there": there,
                    "beside": marks + beside}  # fmt: skip


def _span(memory: Memory, first_B: Tensor) -> tuple[Tensor, Tensor]:
    """Rows [lo, hi) that are text; every head of one text holds as many."""
    lo = (memory.numbers_BNS(len(first_B))[:, 0] < first_B[:, None]).sum(-1).int()
    return lo, torch.full_like(lo, memory.keys.view.shape[2])


def swap(memory: Memory, k_BG1D: Tensor, v_BG1D: Tensor) -> None:
    """Put a new row where the lowest mark is; what leaves waits in the memory for this step's attention."""
    given, clock, marks = memory.given, memory.clock, memory.aux["mark"].view[..., 0]
    assert clock is not None
    new, caches = (k_BG1D[:, :, 0], v_BG1D[:, :, 0]), (memory.keys.view, memory.values.view)
    left = SWAP_ROW(*new, clock.row, given["recent"], *caches, marks, memory.columns)
    given["key"], given["value"] = left.key_BGD, left.value_BGD
    memory.advance(1)


def swapped(memory: Memory, call: Call) -> Dropped:
    """What this step's swap let go; a full cache always lets one row go."""
    keys, values = (memory.given[name][:, :, None] for name in ("key", "value"))
    return Dropped(call.root_scaled(keys), values, memory.given["there"])


def attend_full(q_BH1D: Tensor, memory: Memory, call: Call, marks_BGS: Tensor) -> Share:
    """Attend all of a full cache, and leave marks."""
    return _attended(q_BH1D, memory, call, (memory.given["lo"], memory.given["hi"]), marks_BGS)


def attend_held(q_BH1D: Tensor, memory: Memory, call: Call) -> Share:
    """Attend all text held, and leave no marks."""
    none = memory.aux["mark"].view[:, :, :0, 0]
    return _attended(q_BH1D, memory, call, _span(memory, call.first), none)


def _attended(q_BH1D: Tensor, memory: Memory, call: Call, span: tuple[Tensor, Tensor], marks_BGS: Tensor) -> Share:
    q, caches = q_BH1D[:, :, 0], (memory.keys.view, memory.values.view)
    found = MARKED_DECODE(q, *caches, *span, call.scale, marks_BGS)
    return Share(found.out_BHD[:, :, None], found.log_BH[:, :, None])
