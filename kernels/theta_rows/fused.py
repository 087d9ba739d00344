"""Rows above a threshold, appended as they are scored; a second launch mends the sets that are out of bounds.

Both launches are always made. The second one adds up the weights of each head and, where a set holds too few rows or
too many, scores it again and searches the k-th: one block then does the work of a selection, so it must be rare.

Shape legend: B batch, H query heads, G KV heads, J = H / G, S rows in the cache, R dims, X segments, W rows of one.
"""

import torch
import triton
import triton.language as tl

from ..interpreter import upcasts
from ..overlap.fused import overlap, start_after_others
from ..select_topk.search.fused import middle_of, ordered_key
from ..tiling import Plan, multiprocessors, power_of_2, score_plan

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def score_and_weigh_kernel(q_ptr, k_ptr, lo_ptr, hi_ptr, threshold_ptr, index_ptr, count_ptr, sums_ptr, scale, rows,
                           segment_rows, q_batch, q_head, k_batch, k_head, k_row,
                           KV_HEADS: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr, SEGMENTS: tl.constexpr,
                           BLOCK_ROWS: tl.constexpr, BLOCK_GROUP: tl.constexpr, BLOCK_DIM: tl.constexpr,
                           UPCAST: tl.constexpr, OVERLAP: tl.constexpr):  # fmt: skip
    """Keep the rows of one segment that pass, and sum the weights of each head; the grid is (B * G, X).

    Args:
        q_ptr: Queries.
        k_ptr: Keys.
        lo_ptr: (B,) first visible row.
        hi_ptr: (B,) one past the last visible row.
        threshold_ptr: (B, G) float32.
        index_ptr: (B, G, X, W) int32 result.
        count_ptr: (B, G, X) int32 result.
        sums_ptr: (B * H, X, 3) float32 result: largest score, sum of exp(score - it), the same of the rows kept.
        scale: Factor of the scores.
        rows: S.
        segment_rows: W.
        q_batch: Stride of the queries.
        q_head: Stride of the queries.
        k_batch: Stride of the keys.
        k_head: Stride of the keys.
        k_row: Stride of the keys.
        KV_HEADS: G.
        GROUP: J.
        DIM: R.
        SEGMENTS: X.
        BLOCK_ROWS: Rows of a tile.
        BLOCK_GROUP: Power of two, at least 16 and J.
        BLOCK_DIM: Power of two, at least 16 and R.
        UPCAST: Cast to float32 after each load.
        OVERLAP: Whether the launch overlaps the kernel before.
    """
    start_after_others(OVERLAP)
    pair, segment = tl.program_id(0), tl.program_id(1)
    batch, head = (pair // KV_HEADS).to(tl.int64), (pair % KV_HEADS).to(tl.int64)
    first = segment * segment_rows
    lo = tl.maximum(tl.load(lo_ptr + batch), first)
    hi = tl.minimum(tl.minimum(tl.load(hi_ptr + batch), first + segment_rows), rows)
    threshold = tl.load(threshold_ptr + pair)
    member, column, row = tl.arange(0, BLOCK_GROUP), tl.arange(0, BLOCK_DIM), tl.arange(0, BLOCK_ROWS)
    in_group, in_dim = (member < GROUP)[:, None], (column < DIM)[None, :]
    q_rows = q_ptr + batch * q_batch + (head * GROUP + member)[:, None] * q_head
    q = tl.load(q_rows + column[None, :], mask=in_group & in_dim, other=0.0)
    k_tile = k_ptr + batch * k_batch + head * k_head + lo.to(tl.int64) * k_row
    k_tile += row[:, None] * k_row + column[None, :]
    out = index_ptr + (pair.to(tl.int64) * SEGMENTS + segment) * segment_rows
    kept = segment * 0
    top = tl.full([BLOCK_GROUP], float("-inf"), tl.float32)
    whole, chosen = tl.zeros([BLOCK_GROUP], tl.float32), tl.zeros([BLOCK_GROUP], tl.float32)
    if UPCAST:
        q = q.to(tl.float32)
    for tile in range(lo, hi, BLOCK_ROWS):
        at = tile + row
        seen = at < hi
        k = tl.load(k_tile, mask=seen[:, None] & in_dim, other=0.0)
        if UPCAST:
            k = k.to(tl.float32)
        score = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        best = tl.max(tl.where(in_group, score, float("-inf")), 0)
        passing = seen & (best > threshold)
        through = tl.cumsum(passing.to(tl.int32), 0)
        tl.store(out + kept + through - 1, at, mask=passing)
        kept += tl.max(through, 0)
        score = tl.where(seen[None, :], score, float("-inf"))
        new_top = tl.maximum(top, tl.max(score, 1))
        decay = tl.exp2((top - new_top) * LOG2_E)
        weight = tl.exp2((score - new_top[:, None]) * LOG2_E)
        whole = whole * decay + tl.sum(weight, 1)
        chosen = chosen * decay + tl.sum(tl.where(passing[None, :], weight, 0.0), 1)
        top = new_top
        k_tile += BLOCK_ROWS * k_row
    tl.store(count_ptr + pair * SEGMENTS + segment, kept)
    place = sums_ptr + ((pair * GROUP + member) * SEGMENTS + segment) * 3
    tl.store(place, top, mask=member < GROUP)
    tl.store(place + 1, whole, mask=member < GROUP)
    tl.store(place + 2, chosen, mask=member < GROUP)


@triton.jit
def bound_kernel(q_ptr, k_ptr, lo_ptr, hi_ptr, least_ptr, most_ptr, index_ptr, count_ptr, sums_ptr, share_ptr, key_ptr,
                 scale, rows, segment_rows, q_batch, q_head, k_batch, k_head, k_row,
                 KV_HEADS: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr, SEGMENTS: tl.constexpr,
                 BLOCK_SEGMENTS: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_GROUP: tl.constexpr,
                 BLOCK_DIM: tl.constexpr, UPCAST: tl.constexpr, OVERLAP: tl.constexpr):  # fmt: skip
    """Add up the weights of one set and, if it is out of bounds, choose it anew; the grid is (B * G,).

    Args:
        q_ptr: Queries.
        k_ptr: Keys.
        lo_ptr: (B,) first visible row.
        hi_ptr: (B,) one past the last visible row.
        least_ptr: (B,) int32.
        most_ptr: (B,) int32.
        index_ptr: (B, G, X, W) int32, mended.
        count_ptr: (B, G, X) int32, mended.
        sums_ptr: (B * H, X, 3) float32.
        share_ptr: (B, H) float32 result.
        key_ptr: (B, G, S) int32 scratch, used where a set is mended.
        scale: Factor of the scores.
        rows: S.
        segment_rows: W.
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
        BLOCK_ROWS: Rows of a tile.
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
    in_group, in_dim = (member < GROUP)[:, None], (column < DIM)[None, :]
    count = tl.sum(tl.load(count_ptr + pair * SEGMENTS + segment, mask=segment < SEGMENTS, other=0), 0)
    k_wanted = tl.minimum(tl.maximum(count, tl.load(least_ptr + batch)), tl.load(most_ptr + batch))
    k_wanted = tl.minimum(k_wanted, tl.maximum(hi - lo, 0))
    known = in_group & (segment < SEGMENTS)[None, :]
    place = sums_ptr + ((pair * GROUP + member)[:, None] * SEGMENTS + segment[None, :]) * 3
    tops = tl.load(place, mask=known, other=float("-inf"))
    top = tl.max(tops, 1)
    # -inf minus -inf is NaN: of a sequence without rows the maximum stands at zero.
    base = tl.where(top == float("-inf"), 0.0, top)
    decay = tl.exp2((tops - base[:, None]) * LOG2_E)
    whole = tl.sum(tl.load(place + 1, mask=known, other=0.0) * decay, 1)
    chosen = tl.sum(tl.load(place + 2, mask=known, other=0.0) * decay, 1)
    if k_wanted != count:
        q_rows = q_ptr + batch * q_batch + (head * GROUP + member)[:, None] * q_head
        q = tl.load(q_rows + column[None, :], mask=in_group & in_dim, other=0.0)
        if UPCAST:
            q = q.to(tl.float32)
        k_set = k_ptr + batch * k_batch + head * k_head + column[None, :]
        keys = key_ptr + pair.to(tl.int64) * rows
        for tile in range(lo, hi, BLOCK_ROWS):
            at = tile + row
            k = tl.load(k_set + at.to(tl.int64)[:, None] * k_row, mask=(at < hi)[:, None] & in_dim, other=0.0)
            if UPCAST:
                k = k.to(tl.float32)
            score = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
            tl.store(keys + at, ordered_key(tl.max(tl.where(in_group, score, float("-inf")), 0)), mask=at < hi)
        tl.debug_barrier()
        # at least k keys are at or above `under`, fewer at or above `over`
        under, over, above_over = count * 0 - 2147483647, count * 0 + 2147483647, count * 0
        while under + 1 < over:
            middle = middle_of(under, over)
            found = count * 0
            for tile in range(lo, hi, BLOCK_ROWS):
                key = tl.load(keys + tile + row, mask=tile + row < hi, other=-2147483648)
                found += tl.sum((key >= middle).to(tl.int32), 0)
            above_over = tl.where(found < k_wanted, found, above_over)
            over = tl.where(found < k_wanted, middle, over)
            under = tl.where(found < k_wanted, under, middle)
        room, ties = k_wanted - above_over, count * 0
        chosen = tl.zeros([BLOCK_GROUP], tl.float32)
        for part in range(SEGMENTS):
            first = part * segment_rows
            end = tl.minimum(hi, first + segment_rows)
            out = index_ptr + (pair.to(tl.int64) * SEGMENTS + part) * segment_rows
            kept = count * 0
            for tile in range(tl.maximum(lo, first), end, BLOCK_ROWS):
                at = tile + row
                key = tl.load(keys + at, mask=at < end, other=-2147483648)
                tie = (key == under) & (at < end)
                tie_through = tl.cumsum(tie.to(tl.int32), 0)
                taken = (key > under) | (tie & (ties + tie_through <= room))
                through = tl.cumsum(taken.to(tl.int32), 0)
                tl.store(out + kept + through - 1, at, mask=taken)
                kept += tl.max(through, 0)
                ties += tl.max(tie_through, 0)
                k = tl.load(k_set + at.to(tl.int64)[:, None] * k_row, mask=taken[:, None] & in_dim, other=0.0)
                if UPCAST:
                    k = k.to(tl.float32)
                score = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
                weight = tl.exp2((score - base[:, None]) * LOG2_E)
                chosen += tl.sum(tl.where(taken[None, :], weight, 0.0), 1)
            tl.store(count_ptr + pair * SEGMENTS + part, kept)
    share = chosen / tl.where(whole == 0.0, 1.0, whole)
    tl.store(share_ptr + pair * GROUP + member, share, mask=member < GROUP)


def theta_rows(
    q_BHR: torch.Tensor,
    k_BGSR: torch.Tensor,
    lo_B: torch.Tensor,
    hi_B: torch.Tensor,
    scale: float,
    threshold_BG: torch.Tensor,
    least_B: torch.Tensor,
    most_B: torch.Tensor,
    segments: int,
    plan: Plan | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Choose as the eager twin does, in one read of the visible rows while sets keep their bounds.

    Args:
        q_BHR: (B, H, R) queries, the last dim contiguous.
        k_BGSR: (B, G, S, R) keys, the last dim contiguous.
        lo_B: (B,) int32, first visible row.
        hi_B: (B,) int32, one past the last visible row.
        scale: Factor of the scores.
        threshold_BG: (B, G) float32.
        least_B: (B,) int32.
        most_B: (B,) int32.
        segments: X.
        plan: How to cut the work; its splits are not used. Chosen from the shape if absent.

    Returns:
        index_BGK, count_BGX and share_BH as the eager twin.

    Raises:
        ValueError: If rows are not contiguous.
    """
    if q_BHR.stride(-1) != 1 or k_BGSR.stride(-1) != 1:
        raise ValueError(f"expected stride 1 in the last dim, got {q_BHR.stride()} and {k_BGSR.stride()}")
    heads, (batch, groups, rows, dims) = q_BHR.shape[1], k_BGSR.shape
    plan = plan or score_plan(batch * groups, rows, dims, k_BGSR.element_size(), multiprocessors(q_BHR.device))
    width = triton.cdiv(rows, segments)
    index_BGK, keys, count_BGX = (
        q_BHR.new_empty(batch, groups, size, dtype=torch.int32) for size in (segments * width, rows, segments)
    )
    sums = q_BHR.new_empty(batch, heads, segments, 3, dtype=torch.float32)
    share_BH = q_BHR.new_empty(batch, heads, dtype=torch.float32)
    strides = (*q_BHR.stride()[:2], *k_BGSR.stride()[:3])
    both = {"KV_HEADS": groups, "GROUP": heads // groups, "DIM": dims, "SEGMENTS": segments,
            "BLOCK_ROWS": plan.block_rows, "BLOCK_GROUP": max(16, power_of_2(heads // groups)),
            "BLOCK_DIM": max(16, power_of_2(dims)), "UPCAST": upcasts(q_BHR.dtype), "num_warps": plan.num_warps,
            "num_stages": plan.num_stages, **overlap(q_BHR.device)}  # fmt: skip
    score_and_weigh_kernel[(batch * groups, segments)](
        q_BHR, k_BGSR, lo_B, hi_B, threshold_BG.float().contiguous(), index_BGK, count_BGX, sums, scale, rows, width,
        *strides, **both)  # fmt: skip
    bound_kernel[(batch * groups,)](
        q_BHR, k_BGSR, lo_B, hi_B, least_B, most_B, index_BGK, count_BGX, sums, share_BH, keys, scale, rows, width,
        *strides, BLOCK_SEGMENTS=power_of_2(segments), **both)  # fmt: skip
    return index_BGK, count_BGX, share_BH
