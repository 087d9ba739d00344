"""Rows named while they are scored: a group's threshold is known beforehand, so scores are held against it on chip.

What is not above it can still be kept where no row of its set is: if it is the best. So a row is named, too, if it is
the best of its split so far; those are few, and the launch that follows knows the best of all.

Shape legend: B batch, H query heads, G KV heads, J = H / G, S rows in the cache, D head dim, X splits, W rows that
one of them can name.
"""

import triton
import triton.language as tl

from ...overlap.fused import start_after_others

LOG2_E = tl.constexpr(1.4426950408889634)
# Where a maximum begins: unlike -inf it may be subtracted from itself. No finite score is less.
LOWEST = tl.constexpr(-3.4028234663852886e38)


@triton.jit
def score_and_mark_kernel(q_ptr, k_ptr, lo_ptr, hi_ptr, threshold_ptr, row_ptr, s_ptr, count_ptr, top_ptr, total_ptr,
                          scale, rows, split_rows, k_batch, k_head, k_row, KV_HEADS: tl.constexpr, GROUP: tl.constexpr,
                          DIM: tl.constexpr, SPLITS: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_GROUP: tl.constexpr,
                          BLOCK_DIM: tl.constexpr, UPCAST: tl.constexpr, OVERLAP: tl.constexpr):  # fmt: skip
    """Score one split of the visible rows of one (sequence, KV head), and name those that can be kept.

    The grid is (B * G, X). Rows are named in ascending order.

    Args:
        q_ptr: (B, H, D) queries, contiguous.
        k_ptr: Keys.
        lo_ptr: (B,) first visible row.
        hi_ptr: (B,) one past the last visible row.
        threshold_ptr: (B, G) float32.
        row_ptr: (B * G, X, W) int32 result: rows named.
        s_ptr: (B * G, X, W, J) float32 result: their scaled scores.
        count_ptr: (B * G, X) int32 result: how many.
        top_ptr: (B * H, X) result: largest score of the split; the least finite number where there is none.
        total_ptr: (B * H, X) result: sum of exp(score - top), NaN if a score is.
        scale: Factor of the scores.
        rows: S.
        split_rows: W.
        k_batch: Stride of the keys.
        k_head: Stride of the keys.
        k_row: Stride of the keys.
        KV_HEADS: G.
        GROUP: J.
        DIM: D.
        SPLITS: X.
        BLOCK_ROWS: Rows of a tile.
        BLOCK_GROUP: Power of two, at least 8 and J.
        BLOCK_DIM: Power of two, at least 16 and D.
        UPCAST: Cast to float32 after each load.
        OVERLAP: Whether the launch overlaps the kernel before.
    """
    start_after_others(OVERLAP)
    pair, split = tl.program_id(0), tl.program_id(1)
    batch, head = pair // KV_HEADS, pair % KV_HEADS
    lo, hi = tl.load(lo_ptr + batch), tl.minimum(tl.load(hi_ptr + batch), rows)
    share = tl.cdiv(tl.cdiv(tl.maximum(hi - lo, 0), BLOCK_ROWS), SPLITS) * BLOCK_ROWS
    start = lo + split * share
    end = tl.minimum(start + share, hi)
    member, column, row = tl.arange(0, BLOCK_GROUP), tl.arange(0, BLOCK_DIM), tl.arange(0, BLOCK_ROWS)
    # Rows are the long side of the product; columns beyond the group repeat its heads, which no maximum notices.
    in_dim, at_head = column < DIM, pair * GROUP + member % GROUP
    q = tl.load(q_ptr + at_head[None, :] * DIM + column[:, None], mask=in_dim[:, None], other=0.0)
    threshold = tl.load(threshold_ptr + pair)
    k_tile = k_ptr + batch.to(tl.int64) * k_batch + head.to(tl.int64) * k_head + start.to(tl.int64) * k_row
    k_tile += row[:, None] * k_row + column[None, :]
    first = (pair.to(tl.int64) * SPLITS + split) * split_rows
    row_out, s_out = row_ptr + first, s_ptr + first * GROUP + member[None, :]
    top, named = tl.full([BLOCK_GROUP], LOWEST, tl.float32), split * 0
    # of each place in a tile, so that they are added up across the block once
    total = tl.zeros([BLOCK_ROWS, BLOCK_GROUP], tl.float32)
    if UPCAST:
        q = q.to(tl.float32)
    for tile in range(start, end, BLOCK_ROWS):
        at = tile + row
        seen = at < end
        k = tl.load(k_tile, mask=seen[:, None] if DIM == BLOCK_DIM else seen[:, None] & in_dim[None, :], other=0.0)
        if UPCAST:
            k = k.to(tl.float32)
        score = tl.dot(k, q, input_precision="ieee") * scale
        score = tl.where(seen[:, None], score, float("-inf"))
        new_top = tl.maximum(top, tl.max(score, 0))
        total = total * tl.exp2((top - new_top) * LOG2_E)[None, :] + tl.exp2((score - new_top[None, :]) * LOG2_E)
        top = new_top
        # neither -inf, which stands for hidden rows, nor NaN is above a threshold or as high as a maximum
        rank = tl.max(score, 1)
        passing = (rank > threshold) | (rank >= tl.max(top, 0))
        through = tl.cumsum(passing.to(tl.int32), 0)
        place = named + through - 1
        tl.store(row_out + place, at, mask=passing)
        tl.store(s_out + place[:, None] * GROUP, score, mask=passing[:, None] & (member < GROUP)[None, :])
        named += tl.max(through, 0)
        k_tile += BLOCK_ROWS * k_row
    place = (pair * GROUP + member) * SPLITS + split
    tl.store(count_ptr + pair * SPLITS + split, named)
    tl.store(top_ptr + place, top, mask=member < GROUP)
    tl.store(total_ptr + place, tl.sum(total, 0), mask=member < GROUP)
