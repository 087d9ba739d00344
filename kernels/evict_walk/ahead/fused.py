"""The walk where all heads of a set are weighed at once, by weights made before, of which the next row's are under way.

Shape legend: B batch, H query heads, T query rows (the last T of the S key rows), t of them at a time, S key rows, W
key rows that the last of those sees, N = 1 or G sets of rows, C places of a cache, E query heads of a set.
"""

import triton
import triton.language as tl

NONE = tl.constexpr(0x7FFFFFFFFFFFFFFF)  # no key: after all others


@triton.jit
def exponents_kernel(score_ptr, begin, some, before, width, PART: tl.constexpr):
    """Turn the scores of one row of one head into weights over that of its best key, in place; the grid is (t, B * H).

    Args:
        score_ptr: (B, H, t, W) scaled scores, times log2(e).
        begin: First of the t query rows.
        some: t.
        before: Keys before the first query row.
        width: W.
        PART: Keys at once.
    """
    at, own = tl.arange(0, PART), before + begin + tl.program_id(0)
    line = score_ptr + (tl.program_id(1).to(tl.int64) * some + tl.program_id(0)) * width
    top = tl.full([PART], float("-inf"), tl.float32)
    for key in range(0, own + 1, PART):
        top = tl.maximum(top, tl.load(line + key + at, mask=key + at <= own, other=float("-inf")))
    most = tl.max(top, 0)
    for key in range(0, own + 1, PART):
        score = tl.load(line + key + at, mask=key + at <= own, other=float("-inf"))
        tl.store(line + key + at, tl.exp2(score - most), mask=key + at <= own)


@triton.jit
def walk_ahead_kernel(weight_ptr, mark_ptr, number_ptr, budget_ptr, recent_ptr, place_ptr, count_ptr, until_ptr,
                      last_ptr, lost_ptr, slot_ptr, begin, some, new, rows, width, carry, share, SETS: tl.constexpr,
                      HEADS: tl.constexpr, CHUNK: tl.constexpr, PLACES: tl.constexpr,
                      LEAST: tl.constexpr):  # fmt: skip
    """Walk as `walk_rows_kernel` does, where all heads are weighed at once: what the next row needs is under way.

    The weights of the next row are asked for at the places as they are, and mended once it is known which key left.

    Args:
        weight_ptr: (B, H, t, W) weights over that of the best key of the row, held or not.
        mark_ptr: (B, N, S) marks that keys begin with.
        number_ptr: (B, N, S) token numbers; negative: never held.
        budget_ptr: (B, T) most keys held.
        recent_ptr: (B, T) last tokens that stay.
        place_ptr: (B, N, C) which key lies at each place, S none; read and written.
        count_ptr: (B, N) keys held; read and written.
        until_ptr: (B, N, S) rows at which keys leave; written for those that do.
        last_ptr: (B, N, S) marks of held keys; read and written.
        lost_ptr: (B, N) 1 where the keys held weigh next to nothing beside one that is not; else not written.
        slot_ptr: (C,) numbers of the places.
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
        LEAST: Sum of the weights of a head below which they are lost.
    """
    pair = tl.program_id(0).to(tl.int64)
    batch, places, each = pair // SETS, tl.arange(0, PLACES), tl.arange(0, CHUNK)
    number_base, mark_base, last_base = number_ptr + pair * rows, mark_ptr + pair * rows, last_ptr + pair * rows
    # Places are read and stored as weights are, for all heads at once and at addresses that nothing is known of: one
    # layout then serves all, and no thread computes what others compute too.
    slot, spread = tl.load(slot_ptr + places), tl.zeros([CHUNK, PLACES], tl.int32)
    column = tl.max(tl.load((place_ptr + pair * PLACES + slot)[None, :] + spread), 0)
    count, there = tl.load(count_ptr + pair), (column < rows)[None, :] & (spread == 0)
    number = tl.max(tl.load((number_base + column)[None, :] + spread, mask=there, other=0), 0)
    mark = tl.max(tl.load((last_base + column)[None, :] + spread, mask=there, other=0.0), 0)
    head = each < HEADS
    line = weight_ptr + (pair * HEADS + each.to(tl.int64)) * some * width
    mask = head[:, None] & (column < rows)[None, :]
    weight_next = tl.load(line[:, None] + column[None, :], mask=mask, other=0.0)
    own_next = tl.load(line + rows - new + begin, mask=head, other=0.0)
    now_next, begun_next = tl.load(number_base + rows - new + begin), tl.load(mark_base + rows - new + begin)
    budget_next, recent_next = tl.load(budget_ptr + batch * new + begin), tl.load(recent_ptr + batch * new + begin)
    lost = count * 0
    for t in range(some):
        row, own = begin + t, rows - new + begin + t
        weight, own_weight, now, begun, budget, recent = (
            weight_next, own_next, now_next, begun_next, budget_next, recent_next
        )  # fmt: skip
        line += tl.where(t + 1 < some, width, 0)
        after = tl.minimum(own + 1, rows - new + begin + some - 1)
        mask = head[:, None] & (column < rows)[None, :]
        weight_next = tl.load(line[:, None] + column[None, :], mask=mask, other=0.0)
        own_next = tl.load(line + after, mask=head, other=0.0)
        cross = tl.load(line + own, mask=head, other=0.0)
        now_next, begun_next = tl.load(number_base + after), tl.load(mark_base + after)
        budget_next = tl.load(budget_ptr + batch * new + after - (rows - new))
        recent_next = tl.load(recent_ptr + batch * new + after - (rows - new))
        real = tl.zeros_like(column) + now >= 0
        full = tl.zeros_like(column) + count + 1 > budget
        old = (column < rows) & (number <= now - recent)
        # Marks are not negative, so their bits are ordered as they are; of equal ones the oldest comes first. Which
        # it is, its column tells: the compiler may hold marks twice, summed in another order, and not equal.
        order = (mark.to(tl.int32, bitcast=True).to(tl.int64) << 32) | column.to(tl.int64)
        lowest = tl.min(tl.where(old, order, NONE), 0)
        gone = (lowest & 0xFFFFFFFF).to(tl.int32)
        leaves = old & (column == gone) & full & real
        if (lowest != NONE) & (count + 1 > budget) & (now >= 0):
            tl.store(until_ptr + pair * rows + gone, row)
        here = leaves | ((places == count) & (full == 0) & real)
        column, number = tl.where(here, own, column), tl.where(here, now, number)
        mark = tl.where(here, begun, mark)
        count = tl.where(now >= 0, tl.minimum(count + 1, tl.maximum(budget, count)), count)
        weight = tl.where(here[None, :], own_weight[:, None], weight)
        weight_next = tl.where(here[None, :], cross[:, None], weight_next)
        total = tl.sum(weight, 1)
        least = tl.min(tl.where(head, total, 1.0), 0)
        lost = tl.where((least < LEAST) & (now >= 0), 1, lost)
        added = tl.sum(weight * (1.0 / tl.where(total == 0.0, 1.0, total))[:, None], 0)
        mark = tl.where(real, carry * mark + share * added, mark)
    alone = (each == 0)[:, None] & (spread == 0)
    tl.store((place_ptr + pair * PLACES + slot)[None, :] + spread, column[None, :] + spread, mask=alone)
    tl.store((last_base + column)[None, :] + spread, mark[None, :] + spread, mask=alone & (column < rows)[None, :])
    tl.store(count_ptr + pair, count)
    if lost > 0:
        tl.store(lost_ptr + pair, lost)
