"""Attention whose positions count inside the cache: as if the rows held were all that had ever been written.

Shapes: B batch, H query heads, G key/value heads, S rows held, K rows that a query row attends, D head dimension.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import attend
from .call import Call
from .ledger import Ledger
from .memory import Memory
from .stepwise import Stepwise
from .walk import Walk


def attend_in_cache(method: Stepwise, q_BHTD: Tensor, memory: Memory, call: Call, ledger: Ledger) -> Tensor:
    """Walk the rows of a call; each attends what the walk has left it, at its place in the cache.

    Row by row, since every row that is dropped moves all keys before it.
    """
    walk, out, kept = Walk(method, memory, call), [], []
    for row in range(call.new):
        seen = walk.step(row)
        rows = attend.rows_of(seen)
        weights = _weights(q_BHTD[:, :, row : row + 1], memory, call, rows, row)
        spread = torch.zeros(*weights.shape[:3], seen.shape[2] + 1, device=seen.device)
        heads = rows.repeat_interleave(weights.shape[1] // rows.shape[1], 1)[:, :, None]
        walk.note(row, spread.scatter_(3, heads.masked_fill(heads < 0, seen.shape[2]), weights)[..., :-1])
        out.append(_mean(weights, _taken(memory.values.view, rows)))
        kept.append(seen)
    keep_BGTS = torch.stack(kept, 2)
    read_BGT = keep_BGTS.sum(-1)
    marks = read_BGT[:, : memory.live].sum(1).double() * memory.aux["mark"].row_bytes
    ledger.chosen(memory, call, q_BHTD, keep_BGTS)
    ledger.count(memory, call, read_BGT, marks)
    memory.keep(attend.rows_of(walk.held))
    return torch.cat(out, 2).to(q_BHTD.dtype)


def _weights(q_BH1D: Tensor, memory: Memory, call: Call, rows_BGK: Tensor, row: int) -> Tensor:
    """softmax(q.k) in fp32 over some rows, holes zero, keys turned to their places in the cache; [B, H, 1, K]."""
    there = rows_BGK >= 0
    numbers = memory.numbers_BNS(rows_BGK.shape[0]).expand(-1, rows_BGK.shape[1], -1).gather(2, rows_BGK.clamp(min=0))
    after = there.flip(-1).cumsum(-1).flip(-1) - there.int()  # rows held between this one and the query
    turn = (call.numbers_T[row] - numbers - after).masked_fill(~there, 0)
    keys = _taken(memory.keys.view, rows_BGK)
    turned = memory.site.rotate(keys.flatten(0, 1)[:, None], turn.flatten(0, 1)).view_as(keys)
    scores = attend.group_scores(q_BH1D, turned, "none") * call.scale
    seen = there.repeat_interleave(scores.shape[1] // there.shape[1], 1)[:, :, None]
    return scores.masked_fill(~seen, -torch.inf).softmax(-1).masked_fill(~seen, 0.0)


def _taken(part_BGSD: Tensor, rows_BGK: Tensor) -> Tensor:
    return part_BGSD.gather(2, rows_BGK.clamp(min=0)[..., None].expand(-1, -1, -1, part_BGSD.shape[3]))


def _mean(weights_BH1K: Tensor, values_BGKD: Tensor) -> Tensor:
    batch, heads, _, held = weights_BH1K.shape
    group = heads // values_BGKD.shape[1]  # not -1, which says nothing where no row is held
    grouped = weights_BH1K.view(batch, values_BGKD.shape[1], group, held) @ values_BGKD.float()
    return grouped.view(batch, heads, 1, -1)
