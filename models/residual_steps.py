"""Single rows beside a state: exact attention in two launches, and steps of a full cache that hand on what leaves.

Shapes: B batch, H query heads, G key/value heads, S rows held, D head dimension.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import full_cache
from .call import Call
from .memory import Memory
from .residual_state import Dropped, Share
from .walk import Marking


def prepare(memory: Memory, beside: float) -> None:
    """Note what the state adds to steps of a full cache that is prepared: `beside` bytes that each reads for it."""
    read = memory.given["held"] + 1  # the row that leaves is read once more
    marks = read[:, : memory.live].sum(1).double() * memory.aux["mark"].row_bytes
    there = torch.ones_like(read, dtype=torch.bool)
    memory.given = {**memory.given, "read": read, "there": there, "beside": marks + beside}


def swap(memory: Memory, k_BG1D: Tensor, v_BG1D: Tensor) -> None:
    """Put a new row where the lowest mark is; what leaves waits in the memory for this step's attention."""
    left = full_cache.swap(memory, k_BG1D, v_BG1D)
    memory.given["key"], memory.given["value"] = left.key_BGD, left.value_BGD


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
    return _attended(q_BH1D, memory, call, full_cache.span(memory, call.first), none)


def _attended(q_BH1D: Tensor, memory: Memory, call: Call, span: full_cache.Span, marks_BGS: Tensor) -> Share:
    adding = Marking(marks_BGS.shape[1], 1.0, 1.0)
    found = full_cache.attended(q_BH1D, memory, call, span, marks_BGS, adding)
    return Share(found.out_BHD[:, :, None], found.log_BH[:, :, None])
