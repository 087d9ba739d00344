"""Sets that hold too few rows or too many, and heads whose weights are below float32: one block mends each.

A set that is within its bounds costs a few sums. One that is not is scored again, its k-th score is searched as
`select_topk` searches it, and its rows are written anew.

Shape legend: B batch, H query heads, G KV heads, J = H / G, S rows in the cache, R dims, X segments, W rows of one.
"""

import triton
import triton.language as tl

from ...overlap.fused import start_after_others
from ...select_topk.four.fused import four_first, four_next, narrowed
from ...select_topk.search.fused import BEYOND, LEAST, between, middle_of, score_of

LOG2_E = tl.constexpr(1.4426950408889634)
# Bits by which weights are held below the threshold, and at which they are capped: a million rows that are dropped
# weigh 2^-30 of one that is capped, and as many of these fit into float32.
BELOW, CAP = tl.constexpr(50.0), tl.constexpr(100.0)
# Of a sum that is not less nothing that counts was cut off.
SMALLEST = tl.constexpr(2.0**-60)


@triton.jit
def threshold_of(threshold_ptr, least_ptr, many):
    """Load the threshold of a set; where all rows are wanted, it is one that all exceed.

    Args:
        threshold_ptr: Pointer to it.
        least_ptr: Pointer to the fewest rows that the sequence wants.
        many: Visible rows.

    Returns:
        float32.
    """
    return tl.where(tl.load(least_ptr) >= many, float("-inf"), tl.load(threshold_ptr))


@triton.jit
def base_of(threshold):
    """Choose what weights are held against.

    Args:
        threshold: Of the set.

    Returns:
        Bits, below the threshold; below 0 if it chooses all or nothing.
    """
    finite = (threshold > float("-inf")) & (threshold < float("inf"))
    return tl.where(finite, threshold, 0.0) * LOG2_E - BELOW


@triton.jit
def scored(q, k_set, at, hi, k_row, scale, DIM: tl.constexpr, BLOCK_DIM: tl.constexpr, UPCAST: tl.constexpr):
    """Score some rows of a set again.

    Args:
        q: (BLOCK_GROUP, BLOCK_DIM) queries.
        k_set: Pointer to the set's row 0.
        at: Row numbers.
        hi: One past the last row.
        k_row: Stride of the rows.
        scale: Factor of the scores.
        DIM: R.
        BLOCK_DIM: Power of two, at least 16 and R.
        UPCAST: Cast to float32 after the load.

    Returns:
        (BLOCK_GROUP, rows) scores; of rows beyond the last, -inf.
    """
    column = tl.arange(0, BLOCK_DIM)
    place = k_set + at.to(tl.int64)[:, None] * k_row + column[None, :]
    k = tl.load(place, mask=(at < hi)[:, None] & (column < DIM)[None, :], other=0.0)
    if UPCAST:
        k = k.to(tl.float32)
    return tl.where((at < hi)[None, :], tl.dot(q, tl.trans(k), input_precision="ieee") * scale, float("-inf"))


@triton.jit
def pair_of(first, second):
    """Put two truths into one number, so that sums of them are two counts.

    Args:
        first: One.
        second: The other.

    Returns:
        int64, 32 bits each.
    """
    return first.to(tl.int64) + (second.to(tl.int64) << 32)


@triton.jit
def narrowed_by(under, at_under, over, at_over, first, second, counts, k):
    """Narrow a range by what was counted at two keys.

    Args:
        under: Key that at least k scores reach.
        at_under: How many do.
        over: Key that fewer reach.
        at_over: How many do.
        first: A key.
        second: A key.
        counts: Scores that reach them, as `pair_of` has it.
        k: Scores wanted.

    Returns:
        The four, narrowed.
    """
    at_first, at_second = (counts & 0x7FFFFFFF).to(tl.int32), (counts >> 32).to(tl.int32)
    under, at_under, over, at_over = narrowed(under, at_under, over, at_over, first, at_first, k)
    return narrowed(under, at_under, over, at_over, second, at_second, k)


@triton.jit
def bound_kernel(q_ptr, k_ptr, lo_ptr, hi_ptr, threshold_ptr, least_ptr, most_ptr, index_ptr, count_ptr, sums_ptr,
                 share_ptr, rank_ptr, scale, rows, segment_rows, threshold_batch, threshold_head, q_batch, q_head,
                 k_batch, k_head, k_row,
                 KV_HEADS: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr, SEGMENTS: tl.constexpr,
                 BLOCK_SEGMENTS: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_SEARCH: tl.constexpr,
                 BLOCK_GROUP: tl.constexpr, BLOCK_DIM: tl.constexpr, UPCAST: tl.constexpr,
                 OVERLAP: tl.constexpr):  # fmt: skip
    """Add up the weights of one set and, if it is out of bounds, choose it anew; the grid is (B * G,).

    Args:
        q_ptr: Queries.
        k_ptr: Keys.
        lo_ptr: (B,) first visible row.
        hi_ptr: (B,) one past the last visible row.
        threshold_ptr: (B, G) float32.
        least_ptr: (B,) int32.
        most_ptr: (B,) int32.
        index_ptr: (B, G, X, W) int32, mended.
        count_ptr: (B, G, X) int32, mended.
        sums_ptr: (B * H, X, 2) float32.
        share_ptr: (B, H) float32 result.
        rank_ptr: (B, G, S) float32 scratch, used where a set is mended.
        scale: Factor of the scores.
        rows: S.
        segment_rows: W.
        threshold_batch: Stride of the thresholds.
        threshold_head: Stride of the thresholds.
        q_batch: Stride of the queries.
        q_head: Stride of the queries.
        k_batch: Stride of the keys.
        k_head: Stride of the keys.
        k_row: Stride of the keys.
        KV_HEADS: G.
        GROUP: J.
        DIM: R.
        SEGMENTS: X.
        BLOCK_SEGMENTS: Power of two, at least X.
        BLOCK_ROWS: Rows of a tile that is scored.
        BLOCK_SEARCH: Rows of a tile that is searched.
        BLOCK_GROUP: Power of two, at least 16 and J.
        BLOCK_DIM: Power of two, at least 16 and R.
        UPCAST: Cast to float32 after each load.
        OVERLAP: Whether the launch overlaps the kernel before.
    """
    start_after_others(OVERLAP)
    pair = tl.program_id(0)
    batch, head = (pair // KV_HEADS).to(tl.int64), (pair % KV_HEADS).to(tl.int64)
    lo, hi = tl.load(lo_ptr + batch), tl.minimum(tl.load(hi_ptr + batch), rows)
    member, column, row = tl.arange(0, BLOCK_GROUP), tl.arange(0, BLOCK_DIM), tl.arange(0, BLOCK_ROWS)
    segment = tl.arange(0, BLOCK_SEGMENTS)
    in_group = (member < GROUP)[:, None]
    count = tl.sum(tl.load(count_ptr + pair * SEGMENTS + segment, mask=segment < SEGMENTS, other=0), 0)
    many = tl.maximum(hi - lo, 0)
    k_wanted = tl.minimum(tl.maximum(count, tl.load(least_ptr + batch)), tl.load(most_ptr + batch))
    k_wanted = tl.minimum(k_wanted, many)
    known = in_group & (segment < SEGMENTS)[None, :]
    place = sums_ptr + ((pair * GROUP + member)[:, None] * SEGMENTS + segment[None, :]) * 2
    whole = tl.sum(tl.load(place, mask=known, other=0.0), 1)
    chosen = tl.sum(tl.load(place + 1, mask=known, other=0.0), 1)
    threshold = threshold_of(threshold_ptr + batch * threshold_batch + head * threshold_head, least_ptr + batch, many)
    cut = (member < GROUP) & ((whole >= SMALLEST) == 0)
    if (k_wanted != count) | ((tl.max(cut.to(tl.int32), 0) > 0) & (many > 0)):
        q_rows = q_ptr + batch * q_batch + (head * GROUP + member)[:, None] * q_head
        q = tl.load(q_rows + column[None, :], mask=in_group & (column < DIM)[None, :], other=0.0)
        if UPCAST:
            q = q.to(tl.float32)
        k_set = k_ptr + batch * k_batch + head * k_head
        ranks = rank_ptr + pair.to(tl.int64) * rows
        top = tl.full([BLOCK_GROUP], float("-inf"), tl.float32)
        sums, squares = tl.zeros([BLOCK_ROWS], tl.float32), tl.zeros([BLOCK_ROWS], tl.float32)
        for tile in range(lo, hi, BLOCK_ROWS):
            at = tile + row
            score = scored(q, k_set, at, hi, k_row, scale, DIM, BLOCK_DIM, UPCAST)
            best = tl.max(tl.where(in_group, score, float("-inf")), 0)
            tl.store(ranks + at, best, mask=at < hi)
            top = tl.maximum(top, tl.max(score, 1))
            seen = tl.where(at < hi, best, 0.0)
            sums, squares = sums + seen, squares + seen * seen
        tl.debug_barrier()
        mean = tl.sum(sums, 0) / many
        deviation = tl.sqrt(tl.maximum(tl.sum(squares, 0) / many - mean * mean, 0.0))
        # at least k scores reach `under`, fewer reach `over`; within bounds the threshold itself divides them
        under, over, at_under, at_over = count * 0 + LEAST, count * 0 + BEYOND, many, count * 0
        first, second, third, fourth = four_first(mean, deviation, many, k_wanted)
        middle = middle_of(under, over)
        first, second = between(first, under, over, middle), between(second, under, over, middle)
        third, fourth = between(third, under, over, middle), between(fourth, under, over, middle)
        wide = tl.arange(0, BLOCK_SEARCH)
        while (k_wanted != count) & (at_under != k_wanted) & (under + 1 < over):
            lower, upper = tl.zeros([BLOCK_SEARCH], tl.int64), tl.zeros([BLOCK_SEARCH], tl.int64)
            for tile in range(lo, hi, BLOCK_SEARCH):
                rank = tl.load(ranks + tile + wide, mask=tile + wide < hi, other=float("-inf"))
                lower += pair_of(rank >= score_of(first), rank >= score_of(second))
                upper += pair_of(rank >= score_of(third), rank >= score_of(fourth))
            lower, upper = tl.split(tl.sum(tl.join(lower, upper), 0))
            field = at_under - at_over
            under, at_under, over, at_over = narrowed_by(under, at_under, over, at_over, first, second, lower, k_wanted)
            under, at_under, over, at_over = narrowed_by(under, at_under, over, at_over, third, fourth, upper, k_wanted)
            slow = (at_under - at_over) * 4 > field
            first, second, third, fourth = four_next(under, over, at_under, at_over, k_wanted, slow)
        under_score, over_score = score_of(under), score_of(over)
        room, ties = k_wanted - at_over, count * 0
        whole, chosen = tl.zeros([BLOCK_GROUP], tl.float32), tl.zeros([BLOCK_GROUP], tl.float32)
        for part in range(SEGMENTS):
            first_row = part * segment_rows
            end = tl.minimum(hi, first_row + segment_rows)
            out = index_ptr + (pair.to(tl.int64) * SEGMENTS + part) * segment_rows
            kept = count * 0
            for tile in range(tl.maximum(lo, first_row), end, BLOCK_ROWS):
                at = tile + row
                rank = tl.load(ranks + at, mask=at < end, other=float("-inf"))
                tie = (rank >= under_score) & ((rank >= over_score) == 0) & (at < end)
                tie_through = tl.cumsum(tie.to(tl.int32), 0)
                taken = ((rank >= over_score) & (at < end)) | (tie & (ties + tie_through <= room))
                taken = tl.where(k_wanted == count, (rank > threshold) & (at < end), taken)
                through = tl.cumsum(taken.to(tl.int32), 0)
                tl.store(out + kept + through - 1, at, mask=taken)
                kept += tl.max(through, 0)
                ties += tl.max(tie_through, 0)
                score = scored(q, k_set, at, end, k_row, scale, DIM, BLOCK_DIM, UPCAST)
                weight = tl.exp2((score - top[:, None]) * LOG2_E)
                whole += tl.sum(weight, 1)
                chosen += tl.sum(tl.where(taken[None, :], weight, 0.0), 1)
            tl.store(count_ptr + pair * SEGMENTS + part, kept)
    share = chosen / tl.where(whole == 0.0, 1.0, whole)
    tl.store(share_ptr + pair * GROUP + member, share, mask=member < GROUP)
