"""The mean of the values that a row may see, kept as a running sum so that a step reads one row of it.

Shapes: B batch, G key/value heads, T new rows, D head dimension.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .call import Call
from .memory import Memory

SUM = "value_sum"


def add(memory: Memory, v_BGTD: Tensor) -> None:
    """Add rows that are about to be appended, without padding, to the sum; in fp32, as half precision would stop."""
    if memory.clock is not None:  # a decoded token is no padding
        memory.extra[SUM].add_(v_BGTD)  # in place, where a captured step reads it
        return
    numbers = memory.seen + torch.arange(v_BGTD.shape[2], device=v_BGTD.device)
    total = _without_padding(v_BGTD, numbers, memory.first).sum(2, keepdim=True)
    held = memory.extra.get(SUM)
    memory.extra[SUM] = total if held is None else held + total


def mean_BGTD(memory: Memory, call: Call) -> Tensor:
    """Mean of the values up to each of the T query rows, itself included; zeros for padding rows."""
    total = memory.extra[SUM]
    if call.new > 1:  # rows fed at once: take off what came after each of them
        new = _without_padding(memory.values.view[:, :, -call.new :], call.numbers_T, call.first)
        total = total - new.sum(2, keepdim=True) + new.cumsum(2)
    return total / call.once("rows of the mean", lambda: call.context_BT.clamp(min=1)[:, None, :, None])


def mean_bytes(memory: Memory) -> int:
    """Bytes that a query row reads of the sums of all real heads of one sequence."""
    return memory.site.live * row_bytes(memory)


def row_bytes(memory: Memory) -> int:
    """Bytes of the sum of one head."""
    return memory.extra[SUM].shape[-1] * memory.extra[SUM].element_size()


def _without_padding(v_BGTD: Tensor, numbers_T: Tensor, first_B: Tensor | None) -> Tensor:
    if first_B is None:
        return v_BGTD.float()
    real_BT = numbers_T >= first_B[:, None]
    return v_BGTD.float() * real_BT[:, None, :, None]
