"""Values of the rows that were named while they were scored, as far as they are kept.

Shape legend: B batch, H query heads, G KV heads, J = H / G, S rows in the cache, D head dim, X splits of the scores,
W rows that one of them can name, Y blocks for the values, Y / X for each split.
"""

import triton
import triton.language as tl

from ...overlap.fused import start_after_others
from ..known.fused import LOWEST

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def marked_values_kernel(row_ptr, s_ptr, named_ptr, v_ptr, threshold_ptr, top_ptr, out_ptr, sums_ptr, count_ptr,
                         split_rows, v_batch, v_head, v_row, KV_HEADS: tl.constexpr, GROUP: tl.constexpr,
                         DIM: tl.constexpr, SCORED: tl.constexpr, BLOCK_SCORED: tl.constexpr, SPLITS: tl.constexpr,
                         BLOCK_ROWS: tl.constexpr, BLOCK_GROUP: tl.constexpr, BLOCK_DIM: tl.constexpr,
                         UPCAST: tl.constexpr, OVERLAP: tl.constexpr):  # fmt: skip
    """Weigh the values of the rows that are kept, of an equal share of what one split names; the grid is (B * G, Y).

    Args:
        row_ptr: (B * G, X, W) int32, rows named.
        s_ptr: (B * G, X, W, J) float32, their scaled scores.
        named_ptr: (B * G, X) int32, how many.
        v_ptr: Values.
        threshold_ptr: (B, G) float32.
        top_ptr: (B * H, X) largest scores.
        out_ptr: (B * H, Y, D) float32 result: values times exp(score - largest of the head).
        sums_ptr: (B * H, Y) result: weight kept.
        count_ptr: (B * G, Y) int32 result: rows kept.
        split_rows: W.
        v_batch: Stride of the values.
        v_head: Stride of the values.
        v_row: Stride of the values.
        KV_HEADS: G.
        GROUP: J.
        DIM: D.
        SCORED: X.
        BLOCK_SCORED: Power of two, at least X.
        SPLITS: Y, a multiple of X.
        BLOCK_ROWS: Rows of a tile of values.
        BLOCK_GROUP: Power of two, at least 8 and J.
        BLOCK_DIM: Power of two, at least 16 and D.
        UPCAST: Cast to float32 after each load.
        OVERLAP: Whether the launch overlaps the kernel before.
    """
    start_after_others(OVERLAP)
    pair, split = tl.program_id(0), tl.program_id(1)
    batch, head = pair // KV_HEADS, pair % KV_HEADS
    scored, part = split // (SPLITS // SCORED), split % (SPLITS // SCORED)
    named = tl.load(named_ptr + pair * SCORED + scored)
    share = tl.cdiv(tl.cdiv(named, BLOCK_ROWS), SPLITS // SCORED) * BLOCK_ROWS
    start, end = part * share, tl.minimum(part * share + share, named)
    member, column, row = tl.arange(0, BLOCK_GROUP), tl.arange(0, BLOCK_DIM), tl.arange(0, BLOCK_ROWS)
    other = tl.arange(0, BLOCK_SCORED)
    in_group, in_dim = (member < GROUP)[None, :], (column < DIM)[None, :]
    parts = top_ptr + (pair * GROUP + member)[None, :] * SCORED + other[:, None]
    top = tl.max(tl.load(parts, mask=in_group & (other < SCORED)[:, None], other=LOWEST), 0)
    threshold, best = tl.load(threshold_ptr + pair), tl.max(top, 0)
    first = (pair.to(tl.int64) * SCORED + scored) * split_rows
    numbers, s_heads = row_ptr + first, s_ptr + first * GROUP + member[None, :]
    v_pair = v_ptr + batch.to(tl.int64) * v_batch + head.to(tl.int64) * v_head + column[None, :]
    # Dims are the long side of the product: the short one, the heads of a group, is as short as it can be.
    acc = tl.zeros([BLOCK_DIM, BLOCK_GROUP], tl.float32)
    # of each place in a tile, so that they are added up across the block once
    kept, count = tl.zeros([BLOCK_ROWS, BLOCK_GROUP], tl.float32), tl.zeros([BLOCK_ROWS], tl.int32)
    for done in range(start, end, BLOCK_ROWS):
        there = done + row < end
        score = tl.load(s_heads + (done + row)[:, None] * GROUP, mask=there[:, None] & in_group, other=float("-inf"))
        at = tl.load(numbers + done + row, mask=there, other=0)
        rank = tl.max(score, 1)
        keep = (rank > threshold) | (rank >= best)
        weight = tl.where(keep[:, None] & in_group, tl.exp2((score - top[None, :]) * LOG2_E), 0.0)
        v = tl.load(v_pair + at.to(tl.int64)[:, None] * v_row, mask=keep[:, None] & in_dim, other=0.0)
        kept += weight
        count += keep.to(tl.int32)
        if UPCAST:
            v = v.to(tl.float32)
        acc = tl.dot(tl.trans(v), weight.to(v.dtype), acc, input_precision="ieee")
    place = (pair * GROUP + member) * SPLITS + split
    tl.store(out_ptr + place[None, :] * DIM + column[:, None], acc, mask=in_group & (column < DIM)[:, None])
    tl.store(sums_ptr + place, tl.sum(kept, 0), mask=member < GROUP)
    tl.store(count_ptr + pair * SPLITS + split, tl.sum(count, 0))
