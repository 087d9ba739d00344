"""Attention above thresholds: keys are read once for the scores, then the values of the rows that are kept.

Three launches: scores with the softmax's maximum and sum, kept values, and the parts of all blocks together. The
thresholds are known beforehand, so nothing is searched or sorted, and no index is written.

Shape legend: B batch, H query heads, G KV heads, J = H / G, S rows in the cache, D head dim, N sets, X and Y
splits of the scores and of the values.
"""

from typing import Any

import torch
import triton
import triton.language as tl

from ..interpreter import storage_dtype, upcasts
from ..overlap.fused import overlap, start_after_others
from ..tiling import Plan, attention_plan, multiprocessors, power_of_2
from .eager import check_terms
from .merge.fused import theta_merge_kernel

LOG2_E = tl.constexpr(1.4426950408889634)
# Tiles begin at multiples of so many rows, whatever the first visible one is: scores are then moved 16 bytes at a time.
ALIGN = tl.constexpr(16)


@triton.jit
def theta_score_kernel(q_ptr, k_ptr, lo_ptr, hi_ptr, s_ptr, top_ptr, total_ptr, scale, rows, k_batch, k_head, k_row,
                       KV_HEADS: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr, SPLITS: tl.constexpr,
                       BLOCK_ROWS: tl.constexpr, BLOCK_GROUP: tl.constexpr, BLOCK_DIM: tl.constexpr,
                       UPCAST: tl.constexpr, OVERLAP: tl.constexpr):  # fmt: skip
    """Score one split of the visible rows of one (sequence, KV head); the grid is (B * G, X).

    Args:
        q_ptr: (B, H, D) queries, contiguous.
        k_ptr: Keys.
        lo_ptr: (B,) first visible row.
        hi_ptr: (B,) one past the last visible row.
        s_ptr: (B, H, S) float32 scaled scores, result; others than visible rows hold anything.
        top_ptr: (B * H, X) largest score of the split.
        total_ptr: (B * H, X) sum of exp(score - top).
        scale: Factor of the scores.
        rows: S.
        k_batch: Stride of the keys.
        k_head: Stride of the keys.
        k_row: Stride of the keys.
        KV_HEADS: G.
        GROUP: J.
        DIM: D.
        SPLITS: X.
        BLOCK_ROWS: Rows of a tile.
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
    share = tl.cdiv(tl.cdiv(tl.maximum(hi - begin, 0), BLOCK_ROWS), SPLITS) * BLOCK_ROWS
    start = begin + split * share
    end = tl.minimum(start + share, hi)
    member, column, row = tl.arange(0, BLOCK_GROUP), tl.arange(0, BLOCK_DIM), tl.arange(0, BLOCK_ROWS)
    in_group, in_dim = (member < GROUP)[:, None], (column < DIM)[None, :]
    q = tl.load(q_ptr + (pair * GROUP + member)[:, None] * DIM + column[None, :], mask=in_group & in_dim, other=0.0)
    k_pair = k_ptr + batch.to(tl.int64) * k_batch + head.to(tl.int64) * k_head
    k_tile = k_pair + start.to(tl.int64) * k_row + row[:, None] * k_row + column[None, :]
    s_heads = s_ptr + (pair * GROUP + member).to(tl.int64)[:, None] * rows
    top = tl.full([BLOCK_GROUP], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_GROUP], tl.float32)
    if UPCAST:
        q = q.to(tl.float32)
    for tile in range(start, end, BLOCK_ROWS):
        at = tile + row
        seen = (at >= lo) & (at < end)
        k = tl.load(k_tile, mask=seen[:, None] & in_dim, other=0.0)
        if UPCAST:
            k = k.to(tl.float32)
        score = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        tl.store(s_heads + at[None, :], score, mask=in_group & (at < rows)[None, :])
        score = tl.where(seen[None, :], score, float("-inf"))
        new_top = tl.maximum(top, tl.max(score, 1))
        total = total * tl.exp2((top - new_top) * LOG2_E) + tl.sum(tl.exp2((score - new_top[:, None]) * LOG2_E), 1)
        top = new_top
        k_tile += BLOCK_ROWS * k_row
    place = (pair * GROUP + member) * SPLITS + split
    tl.store(top_ptr + place, top, mask=member < GROUP)
    tl.store(total_ptr + place, total, mask=member < GROUP)


@triton.jit
def value_gather_kernel(s_ptr, v_ptr, lo_ptr, hi_ptr, threshold_ptr, top_ptr, total_ptr, out_ptr, sums_ptr, count_ptr,
                        rows, v_batch, v_head, v_row, KV_HEADS: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr,
                        SCORED: tl.constexpr, BLOCK_SCORED: tl.constexpr, SPLITS: tl.constexpr, POST: tl.constexpr,
                        TOGETHER: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_GROUP: tl.constexpr,
                        BLOCK_DIM: tl.constexpr, UPCAST: tl.constexpr, OVERLAP: tl.constexpr):  # fmt: skip
    """Weigh the values of the rows that are kept, of one split; the grid is (B * G, Y).

    Args:
        s_ptr: (B, H, S) float32 scaled scores.
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
        BLOCK_ROWS: Rows of a tile.
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
    share = tl.cdiv(tl.cdiv(tl.maximum(hi - begin, 0), BLOCK_ROWS), SPLITS) * BLOCK_ROWS
    start = begin + split * share
    end = tl.minimum(start + share, hi)
    member, column, row = tl.arange(0, BLOCK_GROUP), tl.arange(0, BLOCK_DIM), tl.arange(0, BLOCK_ROWS)
    other = tl.arange(0, BLOCK_SCORED)
    in_group, in_dim = member < GROUP, (column < DIM)[None, :]
    parts = (pair * GROUP + member)[:, None] * SCORED + other[None, :]
    known = in_group[:, None] & (other < SCORED)[None, :]
    tops = tl.load(top_ptr + parts, mask=known, other=float("-inf"))
    top = tl.max(tops, 1)
    # -inf minus -inf is NaN: of a sequence without rows the maximum stands at zero.
    base = tl.where(top == float("-inf"), 0.0, top)
    weights = tl.load(total_ptr + parts, mask=known, other=0.0) * tl.exp2((tops - base[:, None]) * LOG2_E)
    total = tl.sum(tl.where(known, weights, 0.0), 1)
    some = tl.where(total == 0.0, 1.0, total)
    best = tl.where(in_group, 1.0 / some if POST else top, float("-inf"))
    if TOGETHER:
        threshold = tl.load(threshold_ptr + pair + member * 0)
        best = tl.max(best, 0) + tl.zeros_like(best)
    else:
        threshold = tl.load(threshold_ptr + pair * GROUP + member, mask=in_group, other=float("inf"))
    v_pair = v_ptr + batch.to(tl.int64) * v_batch + head.to(tl.int64) * v_head + column[None, :]
    s_heads = s_ptr + (pair * GROUP + member).to(tl.int64)[:, None] * rows
    kept, dropped = tl.zeros([BLOCK_GROUP], tl.float32), tl.zeros([BLOCK_GROUP], tl.float32)
    number = tl.zeros([BLOCK_GROUP], tl.float32)
    acc = tl.zeros([BLOCK_GROUP, BLOCK_DIM], tl.float32)
    count = split * 0
    for tile in range(start, end, BLOCK_ROWS):
        at = tile + row
        seen = in_group[:, None] & ((at >= lo) & (at < end))[None, :]
        score = tl.load(s_heads + at[None, :], mask=in_group[:, None] & (at < rows)[None, :], other=float("-inf"))
        weight = tl.where(seen, tl.exp2((score - base[:, None]) * LOG2_E), 0.0)
        rank = weight / some[:, None] if POST else score
        rank = tl.where(seen, rank, float("-inf"))
        if TOGETHER:
            rank = tl.max(rank, 0)[None, :] + tl.zeros_like(rank)
        keep = seen & ((rank > threshold[:, None]) | (rank >= best[:, None]))
        some_head = tl.max(keep.to(tl.int32), 0) > 0
        v = tl.load(v_pair + at.to(tl.int64)[:, None] * v_row, mask=some_head[:, None] & in_dim, other=0.0)
        if UPCAST:
            v = v.to(tl.float32)
        share_kept = tl.where(keep, weight, 0.0)
        acc = tl.dot(share_kept.to(v.dtype), v, acc, input_precision="ieee")
        kept += tl.sum(share_kept, 1)
        dropped += tl.sum(tl.where(keep, 0.0, weight), 1)
        number += tl.sum((seen & (keep == 0)).to(tl.float32), 1)
        count += tl.sum(some_head.to(tl.int32), 0)
    place = (pair * GROUP + member) * SPLITS + split
    tl.store(out_ptr + place[:, None] * DIM + column[None, :], acc, mask=in_group[:, None] & in_dim)
    tl.store(sums_ptr + place * 3, kept, mask=in_group)
    tl.store(sums_ptr + place * 3 + 1, dropped, mask=in_group)
    tl.store(sums_ptr + place * 3 + 2, number, mask=in_group)
    tl.store(count_ptr + pair * SPLITS + split, count)


def theta_decode(
    q_BHD: torch.Tensor,
    k_BGSD: torch.Tensor,
    v_BGSD: torch.Tensor,
    lo_B: torch.Tensor,
    hi_B: torch.Tensor,
    scale: float,
    threshold_BN: torch.Tensor,
    placement: str,
    missing: str,
    given_BH: torch.Tensor,
    factor: float,
    plan: Plan | None = None,
    value_plan: Plan | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Attend as the eager twin does; keys are read once, values where a head keeps the row.

    Args:
        q_BHD: (B, H, D) queries.
        k_BGSD: (B, G, S, D) keys; any strides, the last dim contiguous.
        v_BGSD: (B, G, S, D) values; any strides, the last dim contiguous.
        lo_B: (B,) int32, first visible row.
        hi_B: (B,) int32, one past the last visible row.
        scale: Factor of the scores.
        threshold_BN: (B, N) float32, N = H or G.
        placement: "pre" or "post".
        missing: "none", "exact", "threshold" or "given".
        given_BH: (B, H) float32.
        factor: Of what is missing.
        plan: How to cut the scores; chosen from the shape if absent.
        value_plan: How to cut the values; chosen from the shape if absent.

    Returns:
        out_BHD, lack_BH and count_BG as the eager twin.

    Raises:
        ValueError: If placement or missing is unknown.
    """
    check_terms(placement, missing)
    q_BHD, threshold_BN, given_BH = q_BHD.contiguous(), threshold_BN.float().contiguous(), given_BH.float().contiguous()
    (batch, heads, dim), (groups, rows), sets = q_BHD.shape, k_BGSD.shape[1:3], threshold_BN.shape[1]
    pairs, item, count_sm = batch * groups, k_BGSD.element_size(), multiprocessors(q_BHD.device)
    plan = plan or attention_plan(pairs, rows, dim, item, count_sm)
    value_plan = value_plan or attention_plan(pairs, rows, dim, item, count_sm)
    empty, scored, splits = q_BHD.new_empty, plan.splits, value_plan.splits
    s_BHS = empty(batch, heads, rows, dtype=torch.float32)
    top, total, lack_BH = (empty(batch, heads, *more, dtype=torch.float32) for more in ((scored,), (scored,), ()))
    part, sums = (empty(batch, heads, splits, width, dtype=torch.float32) for width in (dim, 3))
    count = empty(batch, groups, splits, dtype=torch.int32)
    out_BHD = empty(batch, heads, dim, dtype=storage_dtype(q_BHD.dtype))
    both = _shared(q_BHD, groups)
    theta_score_kernel[(pairs, scored)](
        q_BHD, k_BGSD, lo_B, hi_B, s_BHS, top, total, scale, rows, *k_BGSD.stride()[:3], SPLITS=scored, **_cut(plan),
        **both)  # fmt: skip
    value_gather_kernel[(pairs, splits)](
        s_BHS, v_BGSD, lo_B, hi_B, threshold_BN, top, total, part, sums, count, rows, *v_BGSD.stride()[:3],
        SCORED=scored, BLOCK_SCORED=power_of_2(scored), SPLITS=splits, POST=placement == "post",
        TOGETHER=sets < heads, **_cut(value_plan), **both)  # fmt: skip
    theta_merge_kernel[(batch * heads,)](
        part, sums, top, threshold_BN, given_BH, out_BHD, lack_BH, factor, SHARING=heads // sets, DIM=dim,
        SCORED=scored, SPLITS=splits, MISSING=missing, BLOCK_SCORED=power_of_2(scored), BLOCK_SPLITS=power_of_2(splits),
        BLOCK_DIM=power_of_2(dim), num_warps=4, **overlap(q_BHD.device))  # fmt: skip
    return out_BHD.to(q_BHD.dtype), lack_BH, count.sum(-1, dtype=torch.int32)


def _shared(q_BHD: torch.Tensor, groups: int) -> dict[str, Any]:
    group, dim = q_BHD.shape[1] // groups, q_BHD.shape[2]
    return {"KV_HEADS": groups, "GROUP": group, "DIM": dim, "BLOCK_GROUP": max(16, power_of_2(group)),
            "BLOCK_DIM": max(16, power_of_2(dim)), "UPCAST": upcasts(q_BHD.dtype), **overlap(q_BHD.device)}  # fmt: skip


def _cut(plan: Plan) -> dict[str, int]:
    return {"BLOCK_ROWS": plan.block_rows, "num_warps": plan.num_warps, "num_stages": plan.num_stages}
