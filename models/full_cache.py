"""Steps of a full cache whose rows do not move: the new row takes the place of the one with the lowest mark.

Rows then stand in no order, and nothing is asked of the host.

Shapes: B batch, H query heads, G key/value heads, S rows held, D head dimension.
"""

from __future__ import annotations

from torch import Tensor

from ..kernels.marked_decode import OP as MARKED_DECODE
from ..kernels.marked_decode.eager import Marked
from ..kernels.swap_row import OP as SWAP_ROW
from ..kernels.swap_row.eager import Swapped
from .call import Call
from .memory import Memory
from .walk import Marking

Span = tuple[Tensor, Tensor]


def prepare(memory: Memory, recent_B: Tensor) -> None:
    """Note what all steps of a full cache go by.

    Args:
        memory: about to be pinned.
        recent_B: last rows that never leave, the new one among them.
    """
    assert memory.first is not None
    lo_B, hi_B = span(memory, memory.first)
    held = (hi_B - lo_B)[:, None].expand(-1, memory.keys.view.shape[1])[..., None].long()
    kept = held[:, : memory.live].sum((1, 2))
    memory.given = {"recent": recent_B, "lo": lo_B, "hi": hi_B, "held": held, "kept": kept}


def is_prepared(memory: Memory) -> bool:
    """Whether new rows take the places of others from now on."""
    return memory.clock is not None and "recent" in memory.given


def span(memory: Memory, first_B: Tensor) -> Span:
    """Rows [lo, hi) that are text; every head of one text holds as many."""
    lo = (memory.numbers_BNS(len(first_B))[:, 0] < first_B[:, None]).sum(-1).int()
    return lo, lo.new_full(lo.shape, memory.keys.view.shape[2])


def swap(memory: Memory, k_BG1D: Tensor, v_BG1D: Tensor) -> Swapped:
    """Put a new row where the lowest mark is; returns what left."""
    clock, marks = memory.clock, memory.aux["mark"].view[..., 0]
    assert clock is not None
    new, caches = (k_BG1D[:, :, 0], v_BG1D[:, :, 0]), (memory.keys.view, memory.values.view)
    # all was written a step ago or, the token's number, ahead of this step's first layer
    left: Swapped = SWAP_ROW(*new, clock.row, memory.given["recent"], *caches, marks, memory.columns, "settled")
    memory.advance(1)
    return left


def attend(q_BH1D: Tensor, memory: Memory, call: Call, marking: Marking) -> Tensor:
    """Attend all of a full cache, and leave marks.

    Where the last row alone marks, marks are sums over heads and no means: only their order counts. Heads that rank
    alike get one sum, so that they hold the same rows to the end.
    """
    assert marking.share == 1.0 or marking.carry == 0.0
    marks = memory.aux["mark"].view[..., 0]
    return attended(q_BH1D, memory, call, (memory.given["lo"], memory.given["hi"]), marks, marking).out_BHD[:, :, None]


def attended(q_BH1D: Tensor, memory: Memory, call: Call, rows: Span, marks_BGS: Tensor, marking: Marking) -> Marked:
    """Attend some rows, and mark them by sums of weights, if there are marks."""
    q, caches, how = q_BH1D[:, :, 0], (memory.keys.view, memory.values.view), (marking.carry, marking.sets)
    found: Marked = MARKED_DECODE(q, *caches, *rows, call.scale, marks_BGS, *how)
    return found
