"""Scores of cached rows: tiles of rows stream through one block, which reduces over the group on chip.

Shape legend: B batch, H query heads, G KV heads, J = H / G, S rows in the cache, R dims, N = G or H sets of rows.
"""

import torch
import triton
import triton.language as tl

from ..interpreter import upcasts
from ..op import Reduce
from ..overlap.fused import overlap, start_after_others
from ..tiling import Plan, multiprocessors, power_of_2, score_plan


@triton.jit
def score_kernel(q_ptr, k_ptr, lo_ptr, hi_ptr, out_ptr, rows, q_batch, q_head, k_batch, k_head, k_row,
                 KV_HEADS: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr, REDUCE: tl.constexpr,
                 TILES: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_GROUP: tl.constexpr,
                 BLOCK_DIM: tl.constexpr, UPCAST: tl.constexpr, OVERLAP: tl.constexpr):  # fmt: skip
    """Score a run of tiles of one (sequence, KV head); the grid is (B * G, splits).

    Args:
        q_ptr: Queries.
        k_ptr: Keys.
        lo_ptr: (B,) first visible row.
        hi_ptr: (B,) one past the last visible row.
        out_ptr: (B, N, S) scores, contiguous.
        rows: S.
        q_batch: Stride of the queries.
        q_head: Stride of the queries.
        k_batch: Stride of the keys.
        k_head: Stride of the keys.
        k_row: Stride of the keys.
        KV_HEADS: G.
        GROUP: J.
        DIM: R.
        REDUCE: "max", "sum" or "none".
        TILES: Tiles of one block.
        BLOCK_ROWS: Rows of a tile.
        BLOCK_GROUP: Power of two, at least 16 and J.
        BLOCK_DIM: Power of two, at least 16 and R.
        UPCAST: Cast to float32 after each load.
        OVERLAP: Whether the launch overlaps the kernel before.
    """
    start_after_others(OVERLAP)
    pair, split = tl.program_id(0), tl.program_id(1)
    batch, head = (pair // KV_HEADS).to(tl.int64), (pair % KV_HEADS).to(tl.int64)
    lo, hi = tl.load(lo_ptr + batch), tl.load(hi_ptr + batch)
    member, column, row = tl.arange(0, BLOCK_GROUP), tl.arange(0, BLOCK_DIM), tl.arange(0, BLOCK_ROWS)
    in_group, in_dim = (member < GROUP)[:, None], (column < DIM)[None, :]
    q_rows = q_ptr + batch * q_batch + (head * GROUP + member)[:, None] * q_head
    q = tl.load(q_rows + column[None, :], mask=in_group & in_dim, other=0.0)
    first = split * TILES * BLOCK_ROWS
    k_head_ptr = k_ptr + batch * k_batch + head * k_head + first.to(tl.int64) * k_row
    k_tile = k_head_ptr + row[:, None] * k_row + column[None, :]
    out_set = out_ptr + pair.to(tl.int64) * rows
    if REDUCE == "none":
        out_set = out_ptr + pair.to(tl.int64) * GROUP * rows
    if UPCAST:
        q = q.to(tl.float32)
    for tile in range(first, tl.minimum(first + TILES * BLOCK_ROWS, rows), BLOCK_ROWS):
        at = tile + row
        seen = (at >= lo) & (at < hi)
        k = tl.load(k_tile, mask=seen[:, None] & in_dim, other=0.0)
        if UPCAST:
            k = k.to(tl.float32)
        score = tl.dot(q, tl.trans(k), input_precision="ieee")
        if REDUCE == "none":
            score = tl.where(seen[None, :], score, float("-inf"))
            place = member.to(tl.int64)[:, None] * rows + at[None, :]
            tl.store(out_set + place, score, mask=in_group & (at < rows)[None, :])
        else:
            if REDUCE == "max":
                best = tl.max(tl.where(in_group, score, float("-inf")), 0)
            else:
                best = tl.sum(tl.where(in_group, score, 0.0), 0)
            tl.store(out_set + at, tl.where(seen, best, float("-inf")), mask=at < rows)
        k_tile += BLOCK_ROWS * k_row


def lowrank_score(
    q_BHR: torch.Tensor,
    k_BGSR: torch.Tensor,
    lo_B: torch.Tensor,
    hi_B: torch.Tensor,
    reduce: Reduce,
    plan: Plan | None = None,
) -> torch.Tensor:
    """Score as the eager twin does, in one read of the visible rows.

    Args:
        q_BHR: (B, H, R) queries, the last dim contiguous; a slice of wider queries needs no copy.
        k_BGSR: (B, G, S, R) keys, the last dim contiguous; fast if the rows are, too.
        lo_B: (B,) int32, first visible row.
        hi_B: (B,) int32, one past the last visible row.
        reduce: "max" or "sum" over the query heads of a KV head (N = G), or "none" (N = H).
        plan: How to cut the work; chosen from the shape if absent.

    Returns:
        (B, N, S) float32 scores, -inf outside the interval.

    Raises:
        ValueError: If `reduce` is none of the three, or rows are not contiguous.
    """
    if reduce not in ("max", "sum", "none"):
        raise ValueError(f"expected reduce among 'max', 'sum', 'none', got {reduce!r}")
    if q_BHR.stride(-1) != 1 or k_BGSR.stride(-1) != 1:
        raise ValueError(f"expected stride 1 in the last dim, got {q_BHR.stride()} and {k_BGSR.stride()}")
    heads = q_BHR.shape[1]
    batch, kv_heads, rows, dims = k_BGSR.shape
    plan = plan or score_plan(batch * kv_heads, rows, dims, k_BGSR.element_size(), multiprocessors(q_BHR.device))
    sets = heads if reduce == "none" else kv_heads
    s_BNS = torch.empty(batch, sets, rows, dtype=torch.float32, device=q_BHR.device)
    score_kernel[(batch * kv_heads, plan.splits)](
        q_BHR, k_BGSR, lo_B, hi_B, s_BNS, rows, *q_BHR.stride()[:2], *k_BGSR.stride()[:3],
        KV_HEADS=kv_heads, GROUP=heads // kv_heads, DIM=dims, REDUCE=reduce,
        TILES=triton.cdiv(triton.cdiv(rows, plan.block_rows), plan.splits), BLOCK_ROWS=plan.block_rows,
        BLOCK_GROUP=max(16, power_of_2(heads // kv_heads)), BLOCK_DIM=max(16, power_of_2(dims)),
        UPCAST=upcasts(q_BHR.dtype), num_warps=plan.num_warps, num_stages=plan.num_stages, **overlap(q_BHR.device),
    )  # fmt: skip
    return s_BNS
