"""Values of the rows above thresholds: rows are put together first, so that every load of values is full.

A load that masks three of four rows leaves too few bytes in flight.

Shape legend: B batch, H query heads, G KV heads, J = H / G, S rows in the cache, D head dim, N sets, X and Y splits of
the scores and of the values.
"""

import triton
import triton.language as tl

from ...overlap.fused import start_after_others

LOG2_E = tl.constexpr(1.4426950408889634)
# Tiles begin at multiples of so many rows, whatever the first visible one is: scores are then moved 16 bytes at a time.
ALIGN = tl.constexpr(16)


@triton.jit
def value_gather_kernel(s_ptr, row_ptr, v_ptr, lo_ptr, hi_ptr, threshold_ptr, top_ptr, total_ptr, out_ptr, sums_ptr,
                        count_ptr, rows, v_batch, v_head, v_row, KV_HEADS: tl.constexpr, GROUP: tl.constexpr,
                        DIM: tl.constexpr, SCORED: tl.constexpr, BLOCK_SCORED: tl.constexpr, SPLITS: tl.constexpr,
                        POST: tl.constexpr, TOGETHER: tl.constexpr, BLOCK_LOOK: tl.constexpr, BLOCK_FEW: tl.constexpr,
                        BLOCK_ROWS: tl.constexpr, BLOCK_GROUP: tl.constexpr, BLOCK_DIM: tl.constexpr,
                        UPCAST: tl.constexpr, OVERLAP: tl.constexpr):  # fmt: skip
    """Weigh the values of the rows that are kept, of one split; the grid is (B * G, Y).

    First the split's scores are looked at, and the weights and numbers of the rows that are kept are put together at
    its beginning, in place; then these rows are read, each load full.

    Args:
        s_ptr: (B, H, S) float32 scaled scores, overwritten by weights.
        row_ptr: (B, G, S) int32, numbers of the rows that are kept, written.
        v_ptr: Values.
        lo_ptr: (B,) first visible row.
        hi_ptr: (B,) one past the last visible row.
        threshold_ptr: (B, N) float32.
        top_ptr: (B * H, X) largest scores.
        total_ptr: (B * H, X) sums of exp(score - top).
        out_ptr: (B * H, Y, D) float32 result: values times exp(score - largest of the head).
        sums_ptr: (B * H, Y, 3) result: weight kept, weight dropped, rows dropped.
        count_ptr: (B * G, Y) int32 result: rows that some head keeps.
        rows: S.
        v_batch: Stride of the values.
        v_head: Stride of the values.
        v_row: Stride of the values.
        KV_HEADS: G.
        GROUP: J.
        DIM: D.
        SCORED: X.
        BLOCK_SCORED: Power of two, at least X.
        SPLITS: Y.
        POST: Whether thresholds are of weights.
        TOGETHER: Whether a group keeps one set of rows.
        BLOCK_LOOK: Rows whose scores are looked at together.
        BLOCK_FEW: Power of two, at least J.
        BLOCK_ROWS: Rows of a tile of values.
        BLOCK_GROUP: Power of two, at least 16 and J.
        BLOCK_DIM: Power of two, at least 16 and D.
        UPCAST: Cast to float32 after each load.
        OVERLAP: Whether the launch overlaps the kernel before.
    """
    start_after_others(OVERLAP)
    pair, split = tl.program_id(0), tl.program_id(1)
    batch, head = pair // KV_HEADS, pair % KV_HEADS
    lo, hi = tl.load(lo_ptr + batch), tl.load(hi_ptr + batch)
    begin = lo // ALIGN * ALIGN
    share = tl.cdiv(tl.cdiv(tl.maximum(hi - begin, 0), BLOCK_LOOK), SPLITS) * BLOCK_LOOK
    start = begin + split * share
    end = tl.minimum(start + share, hi)
    few, look, other = tl.arange(0, BLOCK_FEW), tl.arange(0, BLOCK_LOOK), tl.arange(0, BLOCK_SCORED)
    in_few = few < GROUP
    parts = (pair * GROUP + few)[:, None] * SCORED + other[None, :]
    known = in_few[:, None] & (other < SCORED)[None, :]
    tops = tl.load(top_ptr + parts, mask=known, other=float("-inf"))
    top = tl.max(tops, 1)
    # -inf minus -inf is NaN: of a sequence without rows the maximum stands at zero.
    base = tl.where(top == float("-inf"), 0.0, top)
    weights = tl.load(total_ptr + parts, mask=known, other=0.0) * tl.exp2((tops - base[:, None]) * LOG2_E)
    total = tl.sum(tl.where(known, weights, 0.0), 1)
    some = tl.where(total == 0.0, 1.0, total)
    best = tl.where(in_few, 1.0 / some if POST else top, float("-inf"))
    if TOGETHER:
        threshold = tl.load(threshold_ptr + pair + few * 0)
        best = tl.max(best, 0) + tl.zeros_like(best)
    else:
        threshold = tl.load(threshold_ptr + pair * GROUP + few, mask=in_few, other=float("inf"))
    s_few = s_ptr + (pair * GROUP + few).to(tl.int64)[:, None] * rows
    numbers = row_ptr + pair.to(tl.int64) * rows + start
    kept, dropped = tl.zeros([BLOCK_FEW], tl.float32), tl.zeros([BLOCK_FEW], tl.float32)
    number = tl.zeros([BLOCK_FEW], tl.float32)
    filled = split * 0
    for tile in range(start, end, BLOCK_LOOK):
        at = tile + look
        seen = in_few[:, None] & ((at >= lo) & (at < end))[None, :]
        score = tl.load(s_few + at[None, :], mask=in_few[:, None] & (at < rows)[None, :], other=float("-inf"))
        weight = tl.where(seen, tl.exp2((score - base[:, None]) * LOG2_E), 0.0)
        rank = weight / some[:, None] if POST else score
        rank = tl.where(seen, rank, float("-inf"))
        if TOGETHER:
            rank = tl.max(rank, 0)[None, :] + tl.zeros_like(rank)
        keep = seen & ((rank > threshold[:, None]) | (rank >= best[:, None]))
        share_kept = tl.where(keep, weight, 0.0)
        kept += tl.sum(share_kept, 1)
        dropped += tl.sum(tl.where(keep, 0.0, weight), 1)
        number += tl.sum((seen & (keep == 0)).to(tl.float32), 1)
        some_head = tl.max(keep.to(tl.int32), 0)
        place = filled + tl.cumsum(some_head, 0) - 1
        # places are not beyond the rows that were looked at, and all threads have looked
        tl.debug_barrier()
        tl.store(s_few + (start + place)[None, :], share_kept, mask=in_few[:, None] & (some_head > 0)[None, :])
        tl.store(numbers + place, at, mask=some_head > 0)
        filled += tl.sum(some_head, 0)
    tl.debug_barrier()
    member, column, row = tl.arange(0, BLOCK_GROUP), tl.arange(0, BLOCK_DIM), tl.arange(0, BLOCK_ROWS)
    in_group, in_dim = (member < GROUP)[:, None], (column < DIM)[None, :]
    s_heads = s_ptr + (pair * GROUP + member).to(tl.int64)[:, None] * rows + start
    v_pair = v_ptr + batch.to(tl.int64) * v_batch + head.to(tl.int64) * v_head + column[None, :]
    acc = tl.zeros([BLOCK_GROUP, BLOCK_DIM], tl.float32)
    for done in range(0, filled, BLOCK_ROWS):
        there = done + row < filled
        at = tl.load(numbers + done + row, mask=there, other=0)
        v = tl.load(v_pair + at.to(tl.int64)[:, None] * v_row, mask=there[:, None] & in_dim, other=0.0)
        share_kept = tl.load(s_heads + (done + row)[None, :], mask=in_group & there[None, :], other=0.0)
        if UPCAST:
            v = v.to(tl.float32)
        acc = tl.dot(share_kept.to(v.dtype), v, acc, input_precision="ieee")
    place = (pair * GROUP + member) * SPLITS + split
    tl.store(out_ptr + place[:, None] * DIM + column[None, :], acc, mask=in_group & in_dim)
    sums = sums_ptr + ((pair * GROUP + few) * SPLITS + split) * 3
    tl.store(sums, kept, mask=in_few)
    tl.store(sums + 1, dropped, mask=in_few)
    tl.store(sums + 2, number, mask=in_few)
    tl.store(count_ptr + pair * SPLITS + split, filled)
