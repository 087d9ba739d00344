"""The weights of all rows, summed over the heads of each set, by as many blocks as the rows need.

Shape legend: B batch, H query heads, G KV heads, J = H / G, S rows in the cache, X parts of a sum.
"""

import torch
import triton
import triton.language as tl

from ...overlap.fused import overlap, start_after_others
from ...tiling import power_of_2
from ..held.fused import joined_parts, weights_of

# Scores that a block reads, of all heads of a set together, and the most of its rows.
BLOCK_SCORES, MOST_ROWS = 4096, 1024


@triton.jit
def choose_by_weight_rank_kernel(score_ptr, part_ptr, lo_ptr, hi_ptr, local_ptr, rank_ptr, lse_ptr, rows,
                                 SETS: tl.constexpr, GROUP: tl.constexpr, SPLITS: tl.constexpr,
                                 BLOCK_ROWS: tl.constexpr, BLOCK_GROUP: tl.constexpr, BLOCK_SPLITS: tl.constexpr,
                                 OVERLAP: tl.constexpr):  # fmt: skip
    """Sum the weights of some rows over the heads of a set; the grid is (B * G, S / BLOCK_ROWS).

    Args:
        score_ptr: (B, H, S) float32.
        part_ptr: (B * H, X, 2) float32: largest score, sum of exp(score - it).
        lo_ptr: (B,) first visible row.
        hi_ptr: (B,) one past the last visible row.
        local_ptr: (B,) how many of the last visible rows are forced.
        rank_ptr: (B, G, S) float32 result.
        lse_ptr: (B, H) float32 result: log of the sum of exp(score).
        rows: S.
        SETS: G.
        GROUP: J.
        SPLITS: X.
        BLOCK_ROWS: Rows of a block.
        BLOCK_GROUP: Power of two, at least J.
        BLOCK_SPLITS: Power of two, at least X.
        OVERLAP: Whether the launch overlaps the kernel before.
    """
    start_after_others(OVERLAP)
    # the sets that were scored last are still near
    pair = tl.num_programs(0) - 1 - tl.program_id(0)
    batch = pair // SETS
    member = tl.arange(0, BLOCK_GROUP)
    at = tl.program_id(1) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    there = (member < GROUP)[:, None] & (at < rows)[None, :]
    # asked for before anything is waited for
    score = tl.load(
        score_ptr + (pair * GROUP + member).to(tl.int64)[:, None] * rows + at[None, :], mask=there, other=float("-inf")
    )
    lo, hi, local = tl.load(lo_ptr + batch), tl.load(hi_ptr + batch), tl.load(local_ptr + batch)
    base, total, lse = joined_parts(part_ptr, pair * GROUP, GROUP, SPLITS, BLOCK_GROUP, BLOCK_SPLITS)
    if tl.program_id(1) == 0:
        tl.store(lse_ptr + pair * GROUP + member, lse, mask=member < GROUP)
    rank = tl.sum(weights_of(score, base[:, None], (1.0 / total)[:, None]), 0)
    rank = tl.where(at >= hi - local, float("inf"), rank)
    rank = tl.where((at >= lo) & (at < hi), rank, float("-inf"))
    tl.store(rank_ptr + pair.to(tl.int64) * rows + at, rank, mask=at < rows)


def rank_rows(
    score_BHS: torch.Tensor,
    part_BHX2: torch.Tensor,
    spans: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    rank_BGS: torch.Tensor,
    lse_BH: torch.Tensor,
) -> None:
    """Sum the weights of all rows.

    Args:
        score_BHS: (B, H, S) float32 scores, contiguous.
        part_BHX2: (B, H, X, 2) float32, contiguous.
        spans: lo_B, hi_B and local_B.
        rank_BGS: (B, G, S) float32, contiguous; written.
        lse_BH: (B, H) float32, contiguous; written.
    """
    (batch, heads, rows), groups = score_BHS.shape, rank_BGS.shape[1]
    group, splits = heads // groups, part_BHX2.shape[2]
    block = max(16, min(MOST_ROWS, BLOCK_SCORES // power_of_2(group), power_of_2(rows)))
    choose_by_weight_rank_kernel[(batch * groups, triton.cdiv(rows, block))](
        score_BHS, part_BHX2, *spans, rank_BGS, lse_BH, rows, SETS=groups, GROUP=group, SPLITS=splits,
        BLOCK_ROWS=block, BLOCK_GROUP=power_of_2(group), BLOCK_SPLITS=power_of_2(splits), num_warps=4,
        **overlap(score_BHS.device),
    )  # fmt: skip
