"""Scores held against thresholds on chip: only the rows that pass are written, and scores never reach memory.

Each block scores one segment of the rows, tile after tile, and appends the rows that pass, a bundle of tiles at once.

Shape legend: B batch, H query heads, G KV heads, J = H / G, S rows in the cache, R dims, X segments, W rows of one.
"""

import torch
import triton
import triton.language as tl

from ..bundle.fused import appended, bundle_of, flagged
from ..interpreter import upcasts
from ..op import Reduce
from ..overlap.fused import overlap, start_after_others
from ..tiling import Plan, multiprocessors, power_of_2, score_plan
from .eager import check_reduce


@triton.jit
def score_and_keep_kernel(q_ptr, k_ptr, lo_ptr, hi_ptr, threshold_ptr, index_ptr, count_ptr, rows, segment_rows,
                          q_batch, q_head, k_batch, k_head, k_row,
                          KV_HEADS: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr, REDUCE: tl.constexpr,
                          SEGMENTS: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_GROUP: tl.constexpr,
                          BLOCK_DIM: tl.constexpr, TILES: tl.constexpr, UPCAST: tl.constexpr,
                          OVERLAP: tl.constexpr):  # fmt: skip
    """Keep the rows of one segment that pass; the grid is (B * G, X).

    Args:
        q_ptr: Queries.
        k_ptr: Keys.
        lo_ptr: (B,) first visible row.
        hi_ptr: (B,) one past the last visible row.
        threshold_ptr: (B, G) float32.
        index_ptr: (B, G, X, W) int32 result.
        count_ptr: (B, G, X) int32 result.
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
        REDUCE: "max" or "sum".
        SEGMENTS: X.
        BLOCK_ROWS: Rows of a tile.
        BLOCK_GROUP: Power of two, at least 8 and J.
        BLOCK_DIM: Power of two, at least 16 and R.
        TILES: Tiles of a bundle.
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
    # Rows are the long side of the product; columns beyond the group repeat its heads, which no maximum notices.
    at_head, in_dim = member % GROUP if REDUCE == "max" else member, column < DIM
    q_columns = q_ptr + batch * q_batch + (head * GROUP + at_head)[None, :] * q_head + column[:, None]
    q = tl.load(q_columns, mask=(at_head < GROUP)[None, :] & in_dim[:, None], other=0.0)
    k_tile = k_ptr + batch * k_batch + head * k_head + lo.to(tl.int64) * k_row
    k_tile += row[:, None] * k_row + column[None, :]
    out = index_ptr + (pair.to(tl.int64) * SEGMENTS + segment) * segment_rows
    kept, filled, word = segment * 0, segment * 0, tl.zeros([BLOCK_ROWS], tl.uint32)
    if UPCAST:
        q = q.to(tl.float32)
    for tile in range(lo, hi, BLOCK_ROWS):
        at = tile + row
        seen = at < hi
        k = tl.load(k_tile, mask=seen[:, None] if DIM == BLOCK_DIM else seen[:, None] & in_dim[None, :], other=0.0)
        if UPCAST:
            k = k.to(tl.float32)
        score = tl.dot(k, q, input_precision="ieee")
        best = tl.max(score, 1) if REDUCE == "max" else tl.sum(score, 1)
        passing = seen & (best >= threshold) & (best > float("-inf"))
        word = flagged(word, passing, TILES)
        filled += 1
        if filled == TILES:
            kept, filled = appended(out, kept, word, tile + BLOCK_ROWS, TILES, TILES), filled * 0
        k_tile += BLOCK_ROWS * k_row
    if filled > 0:
        kept = appended(out, kept, word, lo + tl.cdiv(hi - lo, BLOCK_ROWS) * BLOCK_ROWS, filled, TILES)
    tl.store(count_ptr + pair * SEGMENTS + segment, kept)


def threshold_score(
    q_BHR: torch.Tensor,
    k_BGSR: torch.Tensor,
    lo_B: torch.Tensor,
    hi_B: torch.Tensor,
    reduce: Reduce,
    threshold_BG: torch.Tensor,
    segments: int,
    plan: Plan | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose as the eager twin does, in one read of the visible rows.

    Args:
        q_BHR: (B, H, R) queries, the last dim contiguous.
        k_BGSR: (B, G, S, R) keys, the last dim contiguous; fast if the rows are, too.
        lo_B: (B,) int32, first visible row.
        hi_B: (B,) int32, one past the last visible row.
        reduce: "max" or "sum" over the query heads of a KV head.
        threshold_BG: (B, G) float32 thresholds.
        segments: X.
        plan: How to cut the work; its splits are not used. Chosen from the shape if absent.

    Returns:
        index_BGK, (B, G, X * W) int32, and count_BGX, (B, G, X) int32, as the eager twin.

    Raises:
        ValueError: If `reduce` is neither "max" nor "sum", or rows are not contiguous.
    """
    check_reduce(reduce)
    if q_BHR.stride(-1) != 1 or k_BGSR.stride(-1) != 1:
        raise ValueError(f"expected stride 1 in the last dim, got {q_BHR.stride()} and {k_BGSR.stride()}")
    heads = q_BHR.shape[1]
    batch, kv_heads, rows, dims = k_BGSR.shape
    plan = plan or score_plan(batch * kv_heads, rows, dims, k_BGSR.element_size(), multiprocessors(q_BHR.device))
    width = triton.cdiv(rows, segments)
    index_BGK = torch.empty(batch, kv_heads, segments * width, dtype=torch.int32, device=q_BHR.device)
    count_BGX = torch.empty(batch, kv_heads, segments, dtype=torch.int32, device=q_BHR.device)
    score_and_keep_kernel[(batch * kv_heads, segments)](
        q_BHR, k_BGSR, lo_B, hi_B, threshold_BG.contiguous(), index_BGK, count_BGX, rows, width,
        *q_BHR.stride()[:2], *k_BGSR.stride()[:3],
        KV_HEADS=kv_heads, GROUP=heads // kv_heads, DIM=dims, REDUCE=reduce, SEGMENTS=segments,
        BLOCK_ROWS=plan.block_rows, BLOCK_GROUP=max(8, power_of_2(heads // kv_heads)),
        BLOCK_DIM=max(16, power_of_2(dims)), TILES=bundle_of(plan.block_rows), UPCAST=upcasts(q_BHR.dtype),
        num_warps=plan.num_warps, num_stages=plan.num_stages, **overlap(q_BHR.device),
    )  # fmt: skip
    return index_BGK, count_BGX
