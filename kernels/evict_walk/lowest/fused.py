"""The walk whose marks are the last row's alone: before it, each row names the few keys that may leave after it.

Had nothing left since some rows began, a key would get from each of them a part of what it gets in truth, as its
weights would have more to share with. So of keys outside of those with the lowest such marks none can leave as long as
one of these has a true mark below theirs. A row of the walk then sums the weights of what has left, not of all held.

Shape legend: B batch, H query heads, T query rows (the last T of the S key rows), t of them at a time, S key rows, D
head dim, N sets of rows, C most keys of a cache, W columns, at least C + t: the keys held when these rows begin, and
their own; E query heads of a set, EP the same padded to a power of two, X most keys that a row names.
"""

import triton
import triton.language as tl

from ..ahead.fused import LATE, NONE
from ..columns.fused import (
    CLEARLY,
    INFINITE,
    NEVER,
    SURE,
    border_of,
    keys_of_columns,
    lowest_of,
    shares_of_held,
)


@triton.jit
def lowest_kernel(weight_ptr, total_ptr, number_ptr, recent_ptr, place_ptr, named_ptr, low_ptr, border_ptr, begin, some,
                  new, rows, places, SETS: tl.constexpr, HEADS: tl.constexpr, PADDED: tl.constexpr,
                  NAMED: tl.constexpr, WIDE: tl.constexpr):  # fmt: skip
    """Name the keys with the lowest marks of one row, had nothing left; the grid is (t, B * N).

    Args:
        weight_ptr: (B, H, t, W) weights, as `weights_kernel` leaves them.
        total_ptr: (B, H, t) their sums.
        number_ptr: (B, N, S) token numbers; negative: never held.
        recent_ptr: (B, T) last tokens that stay.
        place_ptr: (B, N, C) which keys are held, S none.
        named_ptr: (B, N, t, X) columns that may leave at the next row, in order; -1 behind them.
        low_ptr: (B, N, t, X, EP) their weights.
        border_ptr: (B, N, t) bits of a mark below which all that may leave are named, before the factor of marks.
        begin: First of the t query rows.
        some: t.
        new: T.
        rows: S.
        places: C.
        SETS: N.
        HEADS: E.
        PADDED: EP.
        NAMED: X.
        WIDE: W.
    """
    t, pair = tl.program_id(0), tl.program_id(1).to(tl.int64)
    column, each, first, after = (
        tl.arange(0, WIDE),
        tl.arange(0, NAMED),
        rows - new + begin,
        tl.minimum(t + 1, some - 1),
    )
    number_base = number_ptr + pair * rows
    _key, number = keys_of_columns(column, place_ptr + pair * places, number_base, first, some, places, rows)
    seen = (number != LATE) & (column <= places + t)
    line, added = weight_ptr + (pair * HEADS * some + t) * WIDE + column, tl.zeros([WIDE], tl.float32)
    for head in range(HEADS):
        weight = tl.load(line + head * some * WIDE, mask=seen, other=0.0)
        total = tl.load(total_ptr + (pair * HEADS + head) * some + t)
        added += weight * (1.0 / tl.where(total == 0.0, 1.0, total)).to(tl.float32)
    now, recent = tl.load(number_base + first + after), tl.load(recent_ptr + pair // SETS * new + begin + after)
    bits = tl.where(seen & (number <= now - recent), added.to(tl.int32, bitcast=True), NEVER)
    border = border_of(bits, NAMED)
    named = bits < border
    at, own = tl.cumsum(named.to(tl.int32), 0) - 1, (pair * some + t) * NAMED
    tl.store(border_ptr + pair * some + t, border)
    tl.store(named_ptr + own + each, each * 0 - 1, mask=each >= tl.sum(named.to(tl.int32), 0))
    tl.store(named_ptr + own + at, column, mask=named)
    for head in range(HEADS):
        weight = tl.load(line + head * some * WIDE, mask=seen, other=0.0)
        tl.store(low_ptr + (own + at) * PADDED + head, weight, mask=named)


@triton.jit
def walk_lowest_kernel(q_ptr, k_ptr, weight_ptr, total_ptr, number_ptr, budget_ptr, recent_ptr, named_ptr, low_ptr,
                       border_ptr, gone_ptr, place_ptr, after_ptr, count_ptr, until_ptr, last_ptr, scale_log2, begin,
                       some, new, rows, places, share, q_batch, q_head, q_row, k_batch, k_head, k_row,
                       GROUP: tl.constexpr, DIM: tl.constexpr, SETS: tl.constexpr, HEADS: tl.constexpr,
                       PADDED: tl.constexpr, NAMED: tl.constexpr, ROWS: tl.constexpr, WIDE: tl.constexpr,
                       LEAST: tl.constexpr):  # fmt: skip
    """Walk as `walk_ahead_kernel` does where marks are not carried on; the grid is (B * N,).

    Args:
        q_ptr: Queries.
        k_ptr: Keys.
        weight_ptr: (B, H, t, W) weights.
        total_ptr: (B, H, t) their sums.
        number_ptr: (B, N, S) token numbers; negative: never held.
        budget_ptr: (B, T) most keys held.
        recent_ptr: (B, T) last tokens that stay.
        named_ptr: (B, N, t, X) as `lowest_kernel` leaves them, and so the next two.
        low_ptr: (B, N, t, X, EP).
        border_ptr: (B, N, t).
        gone_ptr: (B, N, W) int32 for 1 where a column has left; need not be set.
        place_ptr: (B, N, C) which keys are held, in order; S none, behind all others.
        after_ptr: (B, N, C) the same after these rows, written.
        count_ptr: (B, N) keys held; read and written.
        until_ptr: (B, N, S) rows at which keys leave; written for those that do.
        last_ptr: (B, N, S) marks of held keys; read and written.
        scale_log2: Factor of the scores, times log2(e).
        begin: First of the t query rows.
        some: t.
        new: T.
        rows: S.
        places: C.
        share: Factor of weights.
        q_batch: Stride of the queries.
        q_head: Stride of the queries.
        q_row: Stride of the queries.
        k_batch: Stride of the keys.
        k_head: Stride of the keys.
        k_row: Stride of the keys.
        GROUP: Query heads of a KV head.
        DIM: D.
        SETS: N.
        HEADS: E.
        PADDED: EP.
        NAMED: X.
        ROWS: At least t, a power of two.
        WIDE: W.
        LEAST: Sum of the weights of a head below which some may be lost.
    """
    pair = tl.program_id(0).to(tl.int64)
    batch, first, last_row = pair // SETS, rows - new + begin, some - 1
    column, each, head, place = tl.arange(0, WIDE), tl.arange(0, NAMED), tl.arange(0, PADDED), tl.arange(0, ROWS)
    number_base, last_base, gone_base = number_ptr + pair * rows, last_ptr + pair * rows, gone_ptr + pair * WIDE
    budget_base, recent_base = budget_ptr + batch * new + begin, recent_ptr + batch * new + begin
    place_base = place_ptr + pair * places
    count = tl.load(count_ptr + pair)
    tl.store(gone_base + column, column * 0)
    tl.debug_barrier()
    line, heads = weight_ptr + pair * HEADS * some * WIDE, head * some * WIDE
    q_base, k_base = q_ptr + batch * q_batch + tl.cast(begin, tl.int64) * q_row, k_ptr + batch * k_batch
    total_base, named_base = total_ptr + pair * HEADS * some + head * some, named_ptr + pair * some * NAMED + each
    low_base, border_base = low_ptr + pair * some * NAMED * PADDED, border_ptr + pair * some
    # What has left, the last row that was walked, and the keys that it named: all that may leave is among them.
    left, past, border, gone = count * 0, count * 0 - 1, count * 0, tl.full([ROWS], -1, tl.int32)
    when = tl.full([ROWS], -1, tl.int32)
    named, alive = tl.full([NAMED], -1, tl.int32), tl.zeros([NAMED], tl.int32)
    low, inverse, doubt = (
        tl.zeros([NAMED, PADDED], tl.float32),
        tl.zeros([PADDED], tl.float32),
        tl.zeros([PADDED], tl.float32),
    )
    # What the next rows need is under way while one is walked.
    coming, known = tl.load(named_base), tl.zeros([ROWS, PADDED], tl.float32)
    total_next = tl.load(total_base, mask=head < HEADS, other=0.0)
    now_next, budget_next, recent_next = tl.load(number_base + first), tl.load(budget_base), tl.load(recent_base)
    for t in range(some + 1):
        now, budget, recent, total = now_next, budget_next, recent_next, total_next
        row, after = tl.minimum(t, last_row), tl.minimum(t + 1, last_row)
        now_next, budget_next = tl.load(number_base + first + after), tl.load(budget_base + after)
        recent_next, total_next = (
            tl.load(recent_base + after),
            tl.load(total_base + after, mask=head < HEADS, other=0.0),
        )
        coming_next, border_next = tl.load(named_base + after * NAMED), tl.load(border_base + row)
        gone_of_coming = tl.load(gone_base + coming, mask=coming >= 0, other=1, volatile=True)
        low_next = tl.load(
            low_base + (row * NAMED + each)[:, None] * PADDED + head[None, :],
            mask=(coming >= 0)[:, None] & (head < HEADS)[None, :], other=0.0,
        )  # fmt: skip
        sums = tl.sum(low * inverse[None, :] + doubt[None, :], 1)
        lowest = lowest_of(sums, named, alive > 0)
        bits = (lowest >> 32).to(tl.int32)
        above = (bits.to(tl.float32, bitcast=True) * CLEARLY).to(tl.int32, bitcast=True)
        near = (past >= 0) & (past == t - 1) & (bits < INFINITE) & (above < border)
        victim = tl.where(near, (lowest & 0xFFFFFFFF).to(tl.int32), -1)
        real = (now >= 0) & (t < some)
        leaves = real & (count + 1 > budget)
        if (leaves & (near == 0)) | (t == some):
            # All that is held is weighed: at first, in the end, and where too much has left.
            key, number = keys_of_columns(column, place_base, number_base, first, some, places, rows)
            here = (tl.load(gone_base + column, volatile=True) == 0) & (number != LATE) & (column <= places + past)
            added = shares_of_held(
                q_base + past * q_row, k_base, place_base, line + past * WIDE, here, (pair % SETS * HEADS).to(tl.int32),
                tl.where(past >= 0, HEADS, 0), some, first, places, q_head, k_head, k_row, scale_log2, GROUP, DIM,
                WIDE, LEAST,
            )  # fmt: skip
            mark = tl.where(past >= 0, share * added, tl.load(last_base + key, mask=here, other=0.0))
            tl.store(last_base + key, mark, mask=here)  # the last time counts
            least = lowest_of(mark, column, here & (number <= now - recent))
            victim = tl.where(least == NONE, -1, (least & 0xFFFFFFFF).to(tl.int32))
        victim = tl.where(leaves, victim, -1)
        tl.store(gone_base + victim, 1, mask=victim >= 0)
        when = tl.where((place == left) & (victim >= 0), begin + t, when)
        gone = tl.where((place == left) & (victim >= 0), victim, gone)
        left += (victim >= 0).to(tl.int32)
        count = tl.where(real, tl.minimum(count + 1, tl.maximum(budget, count)), count)
        newest = tl.load(line + heads + row * WIDE + victim, mask=tl.where(head < HEADS, victim, -1) >= 0, other=0.0)
        kept = total - tl.sum(known.to(tl.float64), 0) - newest
        sure = kept > tl.maximum(total * SURE, LEAST)
        sure = sure | (head >= HEADS)
        safe = tl.where(sure & (kept > 0.0), kept, 1.0).to(tl.float32)
        inverse = tl.where(real, 1.0 / safe, inverse)
        doubt = tl.where(real, tl.where(sure, 0.0, float("inf")), doubt)
        past = tl.where(real, t, past)
        known = tl.load(
            (line + after * WIDE) + heads[None, :] + gone[:, None],
            mask=(gone >= 0)[:, None] & (head < HEADS)[None, :], other=0.0,
        )  # fmt: skip
        alive = ((gone_of_coming == 0) & (coming != victim)).to(tl.int32)
        named, low, border, coming = coming, low_next, border_next, coming_next
        tl.debug_barrier()  # what has left is read by other threads
    key_gone = tl.load(place_base + gone, mask=(gone >= 0) & (gone < places), other=0)
    key_gone = tl.where(gone < places, key_gone, first + gone - places)
    tl.store(until_ptr + pair * rows + key_gone, when, mask=gone >= 0)
    key, number = keys_of_columns(column, place_base, number_base, first, some, places, rows)
    here = (tl.load(gone_base + column, volatile=True) == 0) & (number != LATE)
    # What is still held, in order, so that of equal marks the oldest stands first again.
    at = tl.cumsum(here.to(tl.int32), 0) - 1
    tl.store(after_ptr + pair * places + at, key, mask=here)
    tl.store(after_ptr + pair * places + column, rows + column * 0, mask=(column >= count) & (column < places))
    tl.store(count_ptr + pair, count)
