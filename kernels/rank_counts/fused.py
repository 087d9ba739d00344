"""How many keys of each row rank above a threshold: products of tiles, compared where they are, and nothing stored.

The query heads of a KV head are multiplied one after the other, so that their maximum is taken lane by lane.

Shape legend: B batch, H query heads, G KV heads, T query rows (the last T of the S key rows), S key rows, R dims of the
ranks, N = G or H sets of rows, E = H / N query heads of a set, M query rows of a tile, K keys of a tile.
"""

import torch
import triton
import triton.language as tl

from ..dense_decode.fused import check_contiguous_rows
from ..grouped_rows.fused import load_keys
from ..interpreter import upcasts
from ..kth_score.eager import check_reduce
from ..many_rows import Tiles, tiles_of
from ..op import Reduce
from ..tiling import power_of_2

TILES = Tiles(64, 128, 4, 3)


@triton.jit
def rank_of_tile(q_base, k, begin, new, q_head, q_row, DIM: tl.constexpr, BLOCK_DIM: tl.constexpr, HEADS: tl.constexpr,
                 M: tl.constexpr, K: tl.constexpr, UPCAST: tl.constexpr):  # fmt: skip
    """Rank a tile of keys for a tile of rows by the largest product over some heads.

    Args:
        q_base: Pointer to row 0 of the first head.
        k: (K, BLOCK_DIM) keys.
        begin: First row.
        new: T.
        q_head: Stride of the queries.
        q_row: Stride of the queries.
        DIM: R.
        BLOCK_DIM: Power of two, at least 16 and R.
        HEADS: E.
        M: Rows.
        K: Keys.
        UPCAST: Cast to float32 after each load.

    Returns:
        (M, K) products, not scaled.
    """
    rank = tl.full([M, K], float("-inf"), tl.float32)
    for member in tl.static_range(HEADS):
        q = load_keys(q_base + member * q_head, begin, new, q_row, DIM, BLOCK_DIM, M, UPCAST)
        rank = tl.maximum(rank, tl.dot(q, tl.trans(k), input_precision="ieee"))
    return rank


@triton.jit
def rank_counts_kernel(q_ptr, k_ptr, threshold_ptr, first_ptr, count_ptr, scale, new, rows, q_batch, q_head, q_row,
                       k_batch, k_head, k_row, SETS: tl.constexpr, HEADS: tl.constexpr, KV_HEADS: tl.constexpr,
                       DIM: tl.constexpr, BLOCK_DIM: tl.constexpr, M: tl.constexpr, K: tl.constexpr,
                       UPCAST: tl.constexpr):  # fmt: skip
    """Count for one tile of rows of one set; the grid is (tiles, B * N).

    Args:
        q_ptr: Queries.
        k_ptr: Keys.
        threshold_ptr: (B, N, T) thresholds.
        first_ptr: (B,) first row that is no padding.
        count_ptr: (B, N, T) keys above.
        scale: Factor of the ranks.
        new: T.
        rows: S.
        q_batch: Stride of the queries.
        q_head: Stride of the queries.
        q_row: Stride of the queries.
        k_batch: Stride of the keys.
        k_head: Stride of the keys.
        k_row: Stride of the keys.
        SETS: N.
        HEADS: E.
        KV_HEADS: G.
        DIM: R.
        BLOCK_DIM: Power of two, at least 16 and R.
        M: Query rows of a tile.
        K: Keys of a tile.
        UPCAST: Cast to float32 after each load.
    """
    pair, begin = tl.program_id(1), (tl.num_programs(0) - 1 - tl.program_id(0)) * M
    batch, own, at = (pair // SETS).to(tl.int64), (pair % SETS).to(tl.int64), begin + tl.arange(0, M)
    q_base = q_ptr + batch * q_batch + own * HEADS * q_head
    k_base = k_ptr + batch * k_batch + own * KV_HEADS // SETS * k_head
    place, row, first = pair.to(tl.int64) * new + at, rows - new + at, tl.load(first_ptr + batch)
    threshold = tl.load(threshold_ptr + place, mask=at < new, other=float("inf"))
    end, count = rows - new + tl.minimum(begin + M, new), tl.zeros([M, K], tl.int32)
    # Keys up to the tile's first row are seen by all of its rows.
    middle = first + tl.maximum(rows - new + begin + 1 - first, 0) // K * K
    for key in range(first, middle, K):
        k = load_keys(k_base, key, end, k_row, DIM, BLOCK_DIM, K, UPCAST)
        rank = rank_of_tile(q_base, k, begin, new, q_head, q_row, DIM, BLOCK_DIM, HEADS, M, K, UPCAST) * scale
        count += (rank > threshold[:, None]).to(tl.int32)
    for key in range(middle, end, K):
        k = load_keys(k_base, key, end, k_row, DIM, BLOCK_DIM, K, UPCAST)
        rank = rank_of_tile(q_base, k, begin, new, q_head, q_row, DIM, BLOCK_DIM, HEADS, M, K, UPCAST) * scale
        seen = (key + tl.arange(0, K))[None, :] <= row[:, None]
        count += ((rank > threshold[:, None]) & seen).to(tl.int32)
    tl.store(count_ptr + place, tl.sum(count, 1), mask=at < new)


def rank_counts(
    rank_q_BHTR: torch.Tensor,
    rank_k_BGSR: torch.Tensor,
    threshold_BNT: torch.Tensor,
    first_B: torch.Tensor,
    scale: float,
    reduce: Reduce,
    plan: Tiles | None = None,
) -> torch.Tensor:
    """Count as the eager twin does.

    Args:
        rank_q_BHTR: (B, H, T, R) queries; any strides, the last dim contiguous.
        rank_k_BGSR: (B, G, S, R) keys; any strides, the last dim contiguous.
        threshold_BNT: (B, N, T) float32.
        first_B: (B,) int32, first row that is no padding.
        scale: Factor of the ranks; positive.
        reduce: "max" or "none".
        plan: How to cut the work; chosen from the shape if absent.

    Returns:
        (B, N, T) int32.

    Raises:
        ValueError: If `reduce` is neither, the scale is not positive, or the last dim of a tensor is not contiguous.
    """
    check_reduce(reduce)
    check_contiguous_rows(rank_q_BHTR, rank_k_BGSR)
    if scale <= 0:
        raise ValueError(f"expected a positive scale, got {scale}")
    q, k, (batch, sets, new) = rank_q_BHTR, rank_k_BGSR, threshold_BNT.shape
    plan = plan or tiles_of(TILES, q.element_size(), q.shape[3])
    count_BNT = torch.empty(threshold_BNT.shape, dtype=torch.int32, device=q.device)
    rank_counts_kernel[(triton.cdiv(new, plan.queries), batch * sets)](
        q, k, threshold_BNT.float().contiguous(), first_B, count_BNT, scale, new, k.shape[2], *q.stride()[:3],
        *k.stride()[:3], SETS=sets, HEADS=q.shape[1] // sets, KV_HEADS=k.shape[1], DIM=q.shape[3],
        BLOCK_DIM=max(16, power_of_2(q.shape[3])), M=plan.queries, K=plan.keys, UPCAST=upcasts(q.dtype),
        num_warps=plan.num_warps, num_stages=plan.num_stages,
    )  # fmt: skip
    return count_BNT
