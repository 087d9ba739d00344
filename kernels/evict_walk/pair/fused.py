"""The walk of sets of one head or two by weights made before, with one exchange between threads for each row.

The sums of a row's weights are those over what was held before it and its own key, less the weight of the key that
leaves: so they are found together with that key, and not after it. Where little is left of a sum, it is summed anew.

Shape legend: B batch, H query heads, G KV heads, T query rows (the last T of the S key rows), t of them at a time, S
key rows, D head dim, N = 1 or G sets of rows, C most keys of a cache, W columns, at least C + t, E = 1 or 2 query heads
of a set.
"""

import triton
import triton.language as tl

from ..ahead.fused import LATE, NONE, weigh_again


@triton.jit
def join(order, one, two, other_order, other_one, other_two):
    """Join what was found of some columns with what was found of others.

    Args:
        order: Lowest mark, and whose it is.
        one: Sum of the weights of the first head.
        two: Of the second.
        other_order: Of the others.
        other_one: Of the others.
        other_two: Of the others.

    Returns:
        The three of all of them.
    """
    return tl.minimum(order, other_order), one + other_one, two + other_two


@triton.jit
def walk_pair_kernel(q_ptr, k_ptr, weight_ptr, mark_ptr, number_ptr, budget_ptr, recent_ptr, place_ptr, after_ptr,
                      count_ptr, until_ptr, last_ptr, scale_log2, begin, some, new, rows, places, carry, share, q_batch,
                      q_head, q_row, k_batch, k_head, k_row, GROUP: tl.constexpr, DIM: tl.constexpr, SETS: tl.constexpr,
                      HEADS: tl.constexpr, WIDE: tl.constexpr, LEAST: tl.constexpr, LEFT: tl.constexpr):  # fmt: skip
    """Walk as `walk_ahead_kernel` does; the grid is (B * N,).

    Args:
        q_ptr: Queries.
        k_ptr: Keys.
        weight_ptr: (B, H, t, W) weights over that of the best key of the row, held or not, times 2^100; 0 of no key,
            and of those that a row does not see, up to a multiple of 16 columns.
        mark_ptr: (B, N, S) marks that keys begin with.
        number_ptr: (B, N, S) token numbers; negative: never held.
        budget_ptr: (B, T) most keys held.
        recent_ptr: (B, T) last tokens that stay.
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
        carry: Factor of marks.
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
        WIDE: W, a power of two.
        LEAST: Sum of the weights of a head below which some may be lost: the row is weighed again.
        LEFT: Share of a sum, below which what is left of it is summed anew: a difference of less has lost digits.
    """
    pair = tl.program_id(0).to(tl.int64)
    batch, column = pair // SETS, tl.arange(0, WIDE)
    number_base, last_base, first = number_ptr + pair * rows, last_ptr + pair * rows, rows - new + begin
    now_base, mark_base = number_base + first, mark_ptr + pair * rows + first
    budget_base, recent_base = budget_ptr + batch * new + begin, recent_ptr + batch * new + begin
    key = tl.load(place_ptr + pair * places + column, mask=column < places, other=rows)
    count, here = tl.load(count_ptr + pair), key < rows
    number = tl.load(number_base + key, mask=here, other=LATE)
    mark = tl.load(last_base + key, mask=here, other=0.0)
    held, until = here.to(tl.float32), tl.full([WIDE], -1, tl.int32)
    line, second = weight_ptr + pair * HEADS * some * WIDE, (HEADS - 1) * some * WIDE
    reach = column < (places + 16) // 16 * 16
    one_next = tl.load(line + column, mask=reach, other=0.0)
    two_next = tl.load(line + second + column, mask=reach, other=0.0)
    now_next, begun_next = tl.load(now_base), tl.load(mark_base)
    budget_next, recent_next = tl.load(budget_base), tl.load(recent_base)
    q_base, k_base = q_ptr + batch * q_batch + tl.cast(begin, tl.int64) * q_row, k_ptr + batch * k_batch
    for t in range(some):
        own, now, begun, budget, recent = places + t, now_next, begun_next, budget_next, recent_next
        after = tl.minimum(t + 1, some - 1)
        now_next, begun_next = tl.load(now_base + after), tl.load(mark_base + after)
        budget_next, recent_next = tl.load(budget_base + after), tl.load(recent_base + after)
        one, two, reach = one_next, two_next, column < (places + after + 16) // 16 * 16
        one_next = tl.load(line + after * WIDE + column, mask=reach, other=0.0)
        two_next = tl.load(line + second + after * WIDE + column, mask=reach, other=0.0)
        real, full = now >= 0, count + 1 > budget
        # Marks are not negative, so their bits are ordered as they are; of equal ones the oldest comes first. Which
        # it is, its column tells.
        order = (mark.to(tl.int32, bitcast=True).to(tl.int64) << 32) | column.to(tl.int64)
        seen = (held > 0.0) | (column == own)
        old = tl.where(number <= now - recent, order, NONE)
        sums = (tl.where(seen, one, 0.0), tl.where(seen, two, 0.0))
        lowest, sum_one, sum_two = tl.reduce((old, sums[0], sums[1]), 0, join)
        gone = tl.where((lowest != NONE) & full & real, (lowest & 0xFFFFFFFF).to(tl.int32), -1)
        comes_in = real & ((gone >= 0) | (full == 0))
        row = line + t * WIDE
        total_one = sum_one - tl.load(row + gone, mask=gone >= 0, other=0.0)
        total_two = sum_two - tl.load(row + second + gone, mask=gone >= 0, other=0.0)
        leaves, comes = column == gone, column == tl.where(comes_in, own, -1)
        number = tl.where(leaves, LATE, tl.where(comes, now, number))
        held = tl.where(leaves, 0.0, tl.where(comes, 1.0, held))
        until, mark = tl.where(leaves, begin + t, until), tl.where(comes, begun, mark)
        count = tl.where(real, tl.minimum(count + 1, tl.maximum(budget, count)), count)
        lost = (total_one < LEFT * sum_one) | (total_two < LEFT * sum_two) | (comes_in == 0)
        if (lost | (tl.minimum(sum_one, sum_two) < LEAST)) & real:
            total_one, total_two = tl.sum(one * held, 0), tl.sum(two * held, 0)
        if (tl.minimum(total_one, total_two) < LEAST) & real:
            # Beside a key that left, those held weigh nothing that float32 could tell.
            begins = pair % SETS * HEADS
            added = weigh_again(
                q_base + t * q_row, k_base, place_ptr + pair * places, held, begins, begins + HEADS, first, places,
                q_head, k_head, k_row, scale_log2, GROUP, DIM, WIDE,
            )  # fmt: skip
        else:
            added = one * (1.0 / tl.where(total_one == 0.0, 1.0, total_one))
            if HEADS > 1:
                added += two * (1.0 / tl.where(total_two == 0.0, 1.0, total_two))
        mark = tl.where(real, carry * mark + share * added, mark)
    here = held > 0.0
    key = tl.where(column < places, key, first + column - places)
    tl.store(until_ptr + pair * rows + key, until, mask=until >= 0)
    tl.store(last_base + key, mark, mask=here)
    # What is still held, in order, so that of equal marks the oldest stands first again.
    place = tl.cumsum(here.to(tl.int32), 0) - 1
    tl.store(after_ptr + pair * places + place, key, mask=here)
    tl.store(after_ptr + pair * places + column, rows + column * 0, mask=(column >= count) & (column < places))
    tl.store(count_ptr + pair, count)
