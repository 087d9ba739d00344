"""Attention over a memory: one row at a time through the Ops, many rows at once through masks; tests prove them equal.

Shapes: B batch, H query heads, G key/value heads, N sets of rows chosen (G or H), T query rows, S rows held, D head
dimension, K rows chosen.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention

from ..kernels.dense_decode import OP as DENSE_DECODE
from ..kernels.gather_decode import OP as GATHER_DECODE
from ..kernels.kth_score import border_of_ranks
from . import many
from .call import Call
from .memory import Memory

ROWS_AT_ONCE = 256  # bounds the [B, N, T, S] scores of a vectorised pass
WINDOW_ROWS_AT_ONCE = {"cpu": ROWS_AT_ONCE, "cuda": 1024}  # of windows, which are short: a GPU would wait for launches
ALL_ROWS = slice(None)


def visible_BNTS(memory: Memory, call: Call, rows: slice = ALL_ROWS) -> Tensor:
    """Which rows held some query rows may see, as booleans; N is 1 while every head holds the same rows."""
    if memory.columns is None and call.visible is not None:
        return call.visible[:, None, rows]
    number = memory.numbers_BNS(call.first.shape[0])[:, :, None]
    if call.visible is None:
        return (number <= call.numbers_T[rows, None]) & (number >= call.first[:, None, None, None])
    visible = call.visible[:, None, rows]
    sets = (-1, number.shape[1], visible.shape[2], -1)
    return visible.expand(sets).gather(3, number.clamp(min=0).expand(sets)) & (number >= 0)


def visible_BTS(memory: Memory, call: Call, rows: slice = ALL_ROWS) -> Tensor:
    """The same where every head holds the same rows."""
    visible = visible_BNTS(memory, call, rows)
    assert visible.shape[1] == 1
    return visible[:, 0]


def first_token(mask_BS: Tensor) -> Tensor:
    """Number of the first token of each text, [B].

    Raises:
        ValueError: padding is not (only) on the left.
    """
    real = mask_BS.bool()
    if bool((real[:, :-1] & ~real[:, 1:]).any()) or not bool(real[:, -1].all()):
        raise ValueError("the attention mask has gaps: pad on the left (tokenizer.padding_side = 'left')")
    return real.int().argmax(-1)


def pieces(call: Call) -> Iterator[slice]:
    """The query rows, so many at once that their scores over all rows held stay small."""
    for first in range(0, call.new, ROWS_AT_ONCE):
        yield slice(first, min(first + ROWS_AT_ONCE, call.new))


def span(memory: Memory, call: Call) -> tuple[Tensor, Tensor]:
    """[lo, hi) of the rows held that the single query row sees, without asking the device.

    [B] each, or [B * G] where each head holds its own rows. What is not visible (padding, holes, tokens that a sliding
    window left) lies before what is.
    """
    if memory.clock is not None and memory.columns is None:
        return memory.clock.lo_B, memory.clock.hi_B
    if memory.growth is not None:
        return memory.growth.lo, memory.growth.hi
    if call.visible is None and memory.columns is None:
        lo = call.first.int()
    else:
        lo = visible_BNTS(memory, call)[:, :, 0].int().argmax(-1).int().flatten()
    return lo, torch.zeros_like(lo) + memory.keys.count


def between(q_BHTD: Tensor, memory: Memory, lo_B: Tensor, hi_B: Tensor, call: Call) -> Tensor:
    """Attend the rows held [lo, hi) with a single query row; returns [B, H, 1, D]."""
    out_BHD: Tensor = DENSE_DECODE(q_BHTD[:, :, 0], memory.keys.view, memory.values.view, lo_B, hi_B, call.scale)
    return out_BHD[:, :, None]


def dense(q_BHTD: Tensor, memory: Memory, call: Call) -> Tensor:
    """Attend every visible row held; returns [B, H, T, D]."""
    k, v = memory.keys.view, memory.values.view
    if call.new == 1:
        lo, hi = span(memory, call)
        if lo.shape[0] != k.shape[0]:  # to the kernel, heads that hold different rows are sequences of their own
            q = q_BHTD.reshape(lo.shape[0], -1, q_BHTD.shape[3])
            k, v = k.flatten(0, 1)[:, None], v.flatten(0, 1)[:, None]
            return DENSE_DECODE(q, k, v, lo, hi, call.scale).view(q_BHTD.shape)
        return between(q_BHTD, memory, lo, hi, call)
    if call.visible is None and memory.columns is None and call.new == call.seen:
        return scaled_dot_product_attention(q_BHTD, k, v, is_causal=True, scale=call.scale, enable_gqa=True)
    if sees_all_held(memory, call):  # no mask of T x S, which the fast kernels refuse
        bias = causal_lower_right(call.new, k.shape[2])
        return scaled_dot_product_attention(q_BHTD, k, v, attn_mask=bias, scale=call.scale, enable_gqa=True)
    if many.fits_hidden(q_BHTD, call):
        return many.after_hidden(q_BHTD, memory, call)
    return masked(q_BHTD, memory, visible_BNTS(memory, call), call)


def visible_count_BNT(memory: Memory, call: Call) -> Tensor:
    """How many rows held each query row sees; without a mask of all pairs where rows see what is before them."""
    if call.new == 1 or (call.visible is not None and not call.causal):
        return visible_BNTS(memory, call).sum(-1)
    is_text = memory.numbers_BNS(call.first.shape[0]) >= call.first[:, None, None]
    before, now = is_text[..., : -call.new], is_text[..., -call.new :]
    return (before.sum(-1, keepdim=True) + now.cumsum(-1)) * now


def sees_all_held(memory: Memory, call: Call) -> bool:
    """Whether each of the last rows sees every row held before it: no padding, no hole, no sliding window."""
    if call.visible is not None and not call.causal:
        return False
    if memory.columns is None:
        return call.once("no padding", lambda: not bool((call.first > 0).any()))
    return not bool((memory.columns < call.first[:, None, None]).any())


def masked(q_BHTD: Tensor, memory: Memory, keep_BNTS: Tensor, call: Call) -> Tensor:
    """Attend the rows that `keep` (N = 1, G or H) allows; rows with none get zeros."""
    heads, sets = q_BHTD.shape[1], keep_BNTS.shape[1]
    keep = keep_BNTS.repeat_interleave(heads // sets, 1) if sets not in (1, heads) else keep_BNTS
    empty = ~any_of(keep)  # padding rows: a softmax over nothing would be NaN and spread
    k, v = memory.keys.view, memory.values.view
    out = scaled_dot_product_attention(q_BHTD, k, v, attn_mask=keep | empty, scale=call.scale, enable_gqa=True)
    return out.masked_fill(empty, 0)


def gathered(q_BHTD: Tensor, memory: Memory, index_BNK: Tensor, count_BN: Tensor, call: Call) -> Tensor:
    """Attend the chosen rows of the single query row; returns [B, H, 1, D]."""
    q, k, v = q_BHTD[:, :, 0], memory.keys.view, memory.values.view
    return GATHER_DECODE(q, k, v, index_BNK, count_BN, call.scale)[:, :, None]


def group_scores(q_BHTW: Tensor, k_BGSW: Tensor, reduce: str) -> Tensor:
    """q.k in fp32, [B, N, T, S]: "max" or "sum" over the query heads of a group (N = G), or "none" (N = H)."""
    batch, heads, rows, width = q_BHTW.shape
    sets = k_BGSW.shape[1]
    q = q_BHTW.reshape(batch, sets, heads // sets * rows, width).float()
    scores = (q @ k_BGSW.float().transpose(2, 3)).view(batch, sets, heads // sets, rows, -1)
    if reduce == "none":
        return scores.flatten(1, 2)
    return scores.amax(2) if reduce == "max" else scores.sum(2)


def largest(scores_BNTS: Tensor, k_BT: Tensor) -> Tensor:
    """Booleans: the k largest of each row ([B, T], or [B, N, T]), ties to the lowest index; -inf is never chosen."""
    k = (k_BT[:, None] if k_BT.ndim == 2 else k_BT)[..., None].expand(*scores_BNTS.shape[:3], 1)
    floor = _floor(scores_BNTS, k)
    above, level = scores_BNTS > floor, scores_BNTS == floor
    able = (scores_BNTS > -torch.inf) & (k > 0)
    if not scores_BNTS.is_cuda and bool((count_of(reach := (above | level) & able) <= k).all()):
        return reach  # no row has more equals than there is room for, so none is told from another
    room = k - above.sum(-1, keepdim=True)
    return (above | (level & (level.cumsum(-1) <= room))) & able


def any_of(keep: Tensor) -> Tensor:
    """Whether a row has any; the last dimension stays, as 1. A CPU looks at bytes faster than at booleans."""
    if keep.device.type != "cpu" or not keep.shape[-1]:
        return keep.any(-1, keepdim=True)
    return keep.view(torch.uint8).amax(-1, keepdim=True).bool()


def count_of(keep: Tensor) -> Tensor:
    """How many a row has, int64; the last dimension stays, as 1. A CPU counts bytes faster than booleans."""
    if keep.is_cuda:
        return keep.sum(-1, keepdim=True)
    return keep.view(torch.uint8).sum(-1, keepdim=True, dtype=torch.int32).long()


def _floor(scores_BNTS: Tensor, k_BNT1: Tensor) -> Tensor:
    """The k-th largest of each row."""
    if scores_BNTS.is_cuda:  # a search without a sort
        return border_of_ranks(scores_BNTS.float(), k_BNT1[..., 0])[0][..., None]
    wide = scores_BNTS.float() if scores_BNTS.dtype == torch.bfloat16 else scores_BNTS
    ascending = torch.from_numpy(np.sort(wide.detach().numpy(), -1))  # a tenth of the time of torch's topk
    return ascending.gather(-1, (ascending.shape[-1] - k_BNT1).clamp(0, ascending.shape[-1] - 1))


def rows_of(keep_BNS: Tensor, most: int | None = None) -> Tensor:
    """Indices of the rows to keep, ascending, [B, N, K]; sets with fewer rows than others begin with -1.

    K is the rows of the fullest set, or, where the host knows that no set has more than `most`, so many: then the
    device is not asked.
    """
    widest = int(keep_BNS.sum(-1).max()) if most is None else min(most, keep_BNS.shape[2])
    index = torch.arange(keep_BNS.shape[2], device=keep_BNS.device).expand_as(keep_BNS)
    return index.masked_fill(~keep_BNS, -1).sort(-1).values[..., keep_BNS.shape[2] - widest :]


def union_BGT(keep_BNTS: Tensor, groups: int) -> Tensor:
    """Rows read per key/value head: those that any query head of its group wants."""
    batch, sets, rows, held = keep_BNTS.shape
    if sets == 1:
        return count_of(keep_BNTS)[..., 0].expand(batch, groups, rows)
    wanted = keep_BNTS.view(batch, groups, sets // groups, rows, held)
    return count_of(wanted.any(2))[..., 0]


def union_of_index(index_BNK: Tensor, count_BN: Tensor, groups: int, rows: int) -> Tensor:
    """The same for chosen indices; [B, G, 1]."""
    batch, sets, width = index_BNK.shape
    if sets == groups:
        return count_BN[..., None]
    hit = torch.zeros(batch, groups, rows + 1, dtype=torch.bool, device=index_BNK.device)
    inside = torch.arange(width, device=index_BNK.device) < count_BN[..., None]
    where = torch.where(inside, index_BNK, rows).view(batch, groups, -1).long()
    return hit.scatter_(2, where, True)[..., :rows].sum(-1, keepdim=True)


def masked_two(q: Tensor, other: Tensor, is_other_BTS: Tensor, memory: Memory, keep_BTS: Tensor, call: Call) -> Tensor:
    """Like `masked`, but the rows `is_other` are scored with the query `other` ([B, H, T, D] like q)."""
    k, v = memory.keys.view, memory.values.view
    empty = ~any_of(keep_BTS)[:, None]
    parts = []
    size = WINDOW_ROWS_AT_ONCE[k.device.type]
    for rows in (slice(first, first + size) for first in range(0, call.new, size)):
        some = keep_BTS[:, rows].flatten(0, 1).any(0).nonzero()[:, 0]  # of a window most rows are far away
        keys, values = k[:, :, some], v[:, :, some].float()
        plain, turned = group_scores(q[:, :, rows], keys, "none"), group_scores(other[:, :, rows], keys, "none")
        scores = torch.where(is_other_BTS[:, None, rows][..., some], turned, plain) * call.scale
        allowed = keep_BTS[:, None, rows][..., some] | empty[:, :, rows]
        weights = scores.masked_fill(~allowed, -torch.inf).softmax(-1)
        grouped = weights.view(weights.shape[0], values.shape[1], -1, weights.shape[-1])
        parts.append((grouped @ values).view(*weights.shape[:3], -1))
    return torch.cat(parts, 2).to(q.dtype).masked_fill(empty, 0)
