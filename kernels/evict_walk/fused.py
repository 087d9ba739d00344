"""Eviction by one block of threads for each set of rows, which holds places and marks of all keys held in registers.

Scores of some rows with all keys are products of tiles, written before; the walk reads those of the keys it holds.

Shape legend: B batch, H query heads, G KV heads, T query rows (the last T of the S key rows), t of them at a time, S
key rows, W key rows that the last of those sees, D head dim, N = 1 or G sets of rows, C places of a cache, E query
heads of a set.
"""

import torch
import triton
import triton.language as tl

from ..dense_decode.fused import LOG2_E, check_contiguous_rows
from ..kth_score.stored.fused import rank_some
from ..tiling import power_of_2
from .eager import Walked

# Scores held at one time (32 MB, which stay in L2), and those of one row in registers.
SCORES_AT_ONCE, SCORES_OF_ROW = 2**23, 16384
SCORES_EACH = 8  # of a thread


@triton.jit
def walk_rows_kernel(score_ptr, mark_ptr, number_ptr, budget_ptr, recent_ptr, place_ptr, count_ptr, until_ptr,
                     last_ptr, begin, some, new, rows, width, carry, share, SETS: tl.constexpr, HEADS: tl.constexpr,
                     CHUNK: tl.constexpr, PLACES: tl.constexpr):  # fmt: skip
    """Walk some rows of one set; the grid is (B * N,).

    Args:
        score_ptr: (B, H, t, W) scaled scores, times log2(e).
        mark_ptr: (B, N, S) marks that keys begin with.
        number_ptr: (B, N, S) token numbers; negative: never held.
        budget_ptr: (B, T) most keys held.
        recent_ptr: (B, T) last tokens that stay.
        place_ptr: (B, N, C) which key lies at each place, -1 none; read and written.
        count_ptr: (B, N) keys held; read and written.
        until_ptr: (B, N, S) rows at which keys leave; written for those that do.
        last_ptr: (B, N, S) marks of held keys; read and written.
        begin: First of the t query rows.
        some: t.
        new: T.
        rows: S.
        width: W.
        carry: Factor of marks.
        share: Factor of weights.
        SETS: N.
        HEADS: E.
        CHUNK: Heads that are weighed at once, a power of two.
        PLACES: C, a power of two.
    """
    pair = tl.program_id(0).to(tl.int64)
    batch, places = pair // SETS, tl.arange(0, PLACES)
    number_base, mark_base, last_base = number_ptr + pair * rows, mark_ptr + pair * rows, last_ptr + pair * rows
    column = tl.load(place_ptr + pair * PLACES + places)
    count = tl.load(count_ptr + pair)
    number = tl.load(number_base + column, mask=column >= 0, other=0)
    mark = tl.load(last_base + column, mask=column >= 0, other=0.0)
    for t in range(some):
        row, own = begin + t, rows - new + begin + t
        now, mark_own = tl.load(number_base + own), tl.load(mark_base + own)
        budget, recent = tl.load(budget_ptr + batch * new + row), tl.load(recent_ptr + batch * new + row)
        if now >= 0:
            full = tl.zeros_like(column) + count + 1 > budget
            old = (column >= 0) & (number <= now - recent)
            # Marks are not negative, so their bits are ordered as they are; of equal ones the oldest comes first.
            order = (mark.to(tl.int32, bitcast=True).to(tl.int64) << 32) | number.to(tl.int64)
            order = tl.where(old, order, 0x7FFFFFFFFFFFFFFF)
            leaves = old & (order == tl.min(order, 0)) & full
            tl.store(until_ptr + pair * rows + column, tl.zeros_like(column) + row, mask=leaves)
            here = leaves | ((places == count) & (full == 0))
            column, number = tl.where(here, own, column), tl.where(here, now, number)
            mark = tl.where(here, mark_own, mark)
            count = tl.minimum(count + 1, tl.maximum(budget, count))
            held = column >= 0
            added = tl.zeros([PLACES], tl.float32)
            for head in range(0, HEADS, CHUNK):
                each = head + tl.arange(0, CHUNK)
                line = ((pair * HEADS + each.to(tl.int64)) * some + t) * width
                mask = held[None, :] & (each < HEADS)[:, None]
                score = tl.load(score_ptr + line[:, None] + column[None, :], mask=mask, other=float("-inf"))
                top = tl.max(score, 1)
                weight = tl.exp2(score - tl.where(top == float("-inf"), 0.0, top)[:, None])
                total = tl.sum(weight, 1)
                added += tl.sum(weight * (1.0 / tl.where(total == 0.0, 1.0, total))[:, None], 0)
            mark = carry * mark + share * added
    tl.store(place_ptr + pair * PLACES + places, column)
    tl.store(count_ptr + pair, count)
    tl.store(last_base + column, mark, mask=column >= 0)


@triton.jit
def sum_and_largest(one_sum, one_top, two_sum, two_top):
    """Reduce two tensors at once, one by its sum and one by its maximum: their exchanges between threads are shared.

    Args:
        one_sum: A sum.
        one_top: A maximum.
        two_sum: Another sum.
        two_top: Another maximum.

    Returns:
        Those of both.
    """
    return one_sum + two_sum, tl.maximum(one_top, two_top)


@triton.jit
def walk_ahead_kernel(score_ptr, mark_ptr, number_ptr, budget_ptr, recent_ptr, place_ptr, count_ptr, until_ptr,
                      last_ptr, begin, some, new, rows, width, carry, share, SETS: tl.constexpr, HEADS: tl.constexpr,
                      CHUNK: tl.constexpr, PLACES: tl.constexpr):  # fmt: skip
    """Walk as `walk_rows_kernel` does, where all heads are weighed at once: what the next row needs is under way.

    The scores of the next row are asked for at the places as they are, and mended once it is known which key left.
    Their largest bounds those that will be weighed, so a row has two exchanges between threads instead of three.

    Args:
        score_ptr: (B, H, t, W) scaled scores, times log2(e).
        mark_ptr: (B, N, S) marks that keys begin with.
        number_ptr: (B, N, S) token numbers; negative: never held.
        budget_ptr: (B, T) most keys held.
        recent_ptr: (B, T) last tokens that stay.
        place_ptr: (B, N, C) which key lies at each place, -1 none; read and written.
        count_ptr: (B, N) keys held; read and written.
        until_ptr: (B, N, S) rows at which keys leave; written for those that do.
        last_ptr: (B, N, S) marks of held keys; read and written.
        begin: First of the t query rows.
        some: t.
        new: T.
        rows: S.
        width: W.
        carry: Factor of marks.
        share: Factor of weights.
        SETS: N.
        HEADS: E.
        CHUNK: Power of two, at least E.
        PLACES: C, a power of two.
    """
    pair = tl.program_id(0).to(tl.int64)
    batch, places, each = pair // SETS, tl.arange(0, PLACES), tl.arange(0, CHUNK)
    number_base, mark_base, last_base = number_ptr + pair * rows, mark_ptr + pair * rows, last_ptr + pair * rows
    column = tl.load(place_ptr + pair * PLACES + places)
    count = tl.load(count_ptr + pair)
    number = tl.load(number_base + column, mask=column >= 0, other=0)
    mark = tl.load(last_base + column, mask=column >= 0, other=0.0)
    head = each < HEADS
    line = score_ptr + (pair * HEADS + each.to(tl.int64)) * some * width
    mask = head[:, None] & (column >= 0)[None, :]
    score_next = tl.load(line[:, None] + column[None, :], mask=mask, other=float("-inf"))
    own_next = tl.load(line + rows - new + begin, mask=head, other=float("-inf"))
    now_next, begun_next = tl.load(number_base + rows - new + begin), tl.load(mark_base + rows - new + begin)
    budget_next, recent_next = tl.load(budget_ptr + batch * new + begin), tl.load(recent_ptr + batch * new + begin)
    top = tl.max(score_next, 1)
    for t in range(some):
        row, own = begin + t, rows - new + begin + t
        score, own_score, now, begun, budget, recent = (
            score_next, own_next, now_next, begun_next, budget_next, recent_next
        )  # fmt: skip
        line += tl.where(t + 1 < some, width, 0)
        after = tl.minimum(own + 1, rows - new + begin + some - 1)
        mask = head[:, None] & (column >= 0)[None, :]
        score_next = tl.load(line[:, None] + column[None, :], mask=mask, other=float("-inf"))
        own_next = tl.load(line + after, mask=head, other=float("-inf"))
        cross = tl.load(line + own, mask=head, other=float("-inf"))
        now_next, begun_next = tl.load(number_base + after), tl.load(mark_base + after)
        budget_next = tl.load(budget_ptr + batch * new + after - (rows - new))
        recent_next = tl.load(recent_ptr + batch * new + after - (rows - new))
        real = tl.zeros_like(column) + now >= 0
        full = tl.zeros_like(column) + count + 1 > budget
        old = (column >= 0) & (number <= now - recent)
        # Marks are not negative, so their bits are ordered as they are; of equal ones the oldest comes first.
        order = (mark.to(tl.int32, bitcast=True).to(tl.int64) << 32) | number.to(tl.int64)
        order = tl.where(old, order, 0x7FFFFFFFFFFFFFFF)
        leaves = old & (order == tl.min(order, 0)) & full & real
        tl.store(until_ptr + pair * rows + column, tl.zeros_like(column) + row, mask=leaves)
        here = leaves | ((places == count) & (full == 0) & real)
        column, number = tl.where(here, own, column), tl.where(here, now, number)
        mark = tl.where(here, begun, mark)
        count = tl.where(now >= 0, tl.minimum(count + 1, tl.maximum(budget, count)), count)
        score = tl.where(here[None, :], own_score[:, None], score)
        score_next = tl.where(here[None, :], cross[:, None], score_next)
        bound = tl.maximum(top, own_score)
        weight = tl.exp2(score - tl.where(bound == float("-inf"), 0.0, bound)[:, None])
        total, top = tl.reduce((weight, score_next), 1, sum_and_largest)
        if tl.min(tl.where(head, total, 1.0), 0) < 1e-6:  # what left stood far above all that is held
            bound = tl.max(score, 1)
            weight = tl.exp2(score - tl.where(bound == float("-inf"), 0.0, bound)[:, None])
            total = tl.sum(weight, 1)
        added = tl.sum(weight * (1.0 / tl.where(total == 0.0, 1.0, total))[:, None], 0)
        mark = tl.where(real, carry * mark + share * added, mark)
    tl.store(place_ptr + pair * PLACES + places, column)
    tl.store(count_ptr + pair, count)
    tl.store(last_base + column, mark, mask=column >= 0)


def evict_walk(
    q_BHTD: torch.Tensor,
    k_BGSD: torch.Tensor,
    mark_BNS: torch.Tensor,
    number_BNS: torch.Tensor,
    budget_BT: torch.Tensor,
    recent_BT: torch.Tensor,
    scale: float,
    carry: float,
    share: float,
    num_warps: int | None = None,
) -> Walked:
    """Walk as the eager twin does, one launch for as many rows as 32 MB hold scores of.

    Args:
        q_BHTD: (B, H, T, D) queries; any strides, the last dim contiguous.
        k_BGSD: (B, G, S, D) keys; any strides, the last dim contiguous.
        mark_BNS: (B, N, S) float32.
        number_BNS: (B, N, S) int32.
        budget_BT: (B, T) int32.
        recent_BT: (B, T) int32.
        scale: Factor of the scores.
        carry: Factor of marks.
        share: Factor of weights.
        num_warps: Warps of a block; chosen from the budget if absent.

    Returns:
        How long each key is held, and the marks in the end.

    Raises:
        ValueError: If the last dim of a tensor is not contiguous.
    """
    check_contiguous_rows(q_BHTD, k_BGSD)
    (batch, heads, new, _), rows, sets = q_BHTD.shape, k_BGSD.shape[2], number_BNS.shape[1]
    number, begun = number_BNS.int().contiguous(), mark_BNS.float().contiguous()
    most = max(int((number[..., : rows - new] >= 0).sum(-1).max()), int(budget_BT.max()))
    place, count = _first_places(number, rows - new, power_of_2(max(most, 32)))
    until = torch.full_like(number, new).masked_fill_(number < 0, 0)
    last, seen = begun.clone(), torch.zeros(batch, dtype=torch.int32, device=q_BHTD.device)
    step = max(1, min(new, SCORES_AT_ONCE // (batch * heads * rows)))
    score = torch.empty(batch * heads * step * rows, dtype=torch.float32, device=q_BHTD.device)
    places, each = place.shape[2], heads // sets
    chunk = max(1, min(power_of_2(each), SCORES_OF_ROW // places))
    kernel = walk_ahead_kernel if chunk >= each else walk_rows_kernel
    for begin in range(0, new, step):
        some = min(step, new - begin)
        rank_some(q_BHTD, k_BGSD, seen, score, scale * LOG2_E, begin, some, heads)
        kernel[(batch * sets,)](
            score, begun, number, budget_BT.int().contiguous(), recent_BT.int().contiguous(), place, count, until, last,
            begin, some, new, rows, rows - new + begin + some, carry, share, SETS=sets, HEADS=each, CHUNK=chunk,
            PLACES=places, num_warps=num_warps or max(1, min(16, places * chunk // (32 * SCORES_EACH))),
        )  # fmt: skip
    return Walked(until, last.masked_fill_(until < new, 0.0))


def _first_places(number_BNS: torch.Tensor, before: int, places: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys held from the start at the first places, -1 at the others, (B, N, C) int32; and how many, (B, N) int32."""
    held = number_BNS[..., :before] >= 0
    order = (~held).int().argsort(dim=-1, stable=True)[..., :places]
    count = held.sum(-1, keepdim=True)
    place = torch.full((*held.shape[:2], places), -1, dtype=torch.int32, device=held.device)
    there = torch.arange(order.shape[-1], device=held.device) < count
    place[..., : order.shape[-1]] = torch.where(there, order.int(), -1)
    return place, count[..., 0].int()
