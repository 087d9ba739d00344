"""Column sums of attention in two passes: sums of rows, then each block of threads owns a tile of keys.

Shape legend: B batch, H query heads, G KV heads, J = H / G, T query rows (the last T of the S key rows), S key rows,
D head dim, M query rows of a tile, N keys of a tile.
"""

import math

import torch
import triton
import triton.language as tl

from ..dense_decode.fused import LOG2_E, check_contiguous_rows
from ..grouped_rows.fused import load_keys
from ..interpreter import upcasts
from ..many_rows import Tiles, tiles_of
from ..tiling import power_of_2

TILES = Tiles(128, 128, 8, 3)


@triton.jit
def row_sums_kernel(q_ptr, k_ptr, first_ptr, lse_ptr, scale_log2, new, rows, q_batch, q_head, q_row, k_batch, k_head,
                    k_row, HEADS: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr, BLOCK_DIM: tl.constexpr,
                    M: tl.constexpr, N: tl.constexpr, UPCAST: tl.constexpr):  # fmt: skip
    """Sum the weights of one tile of query rows of one head; the grid is (tiles, B * H).

    Args:
        q_ptr: Queries.
        k_ptr: Keys.
        first_ptr: (B,) first row that is no padding.
        lse_ptr: (B, H, T) log2 of the sums, contiguous.
        scale_log2: Factor of the scores, times log2(e).
        new: T.
        rows: S.
        q_batch: Stride of the queries.
        q_head: Stride of the queries.
        q_row: Stride of the queries.
        k_batch: Stride of the keys.
        k_head: Stride of the keys.
        k_row: Stride of the keys.
        HEADS: H.
        GROUP: J.
        DIM: D.
        BLOCK_DIM: Power of two, at least 16 and D.
        M: Query rows of a tile.
        N: Keys of a tile.
        UPCAST: Cast to float32 after each load.
    """
    pair = tl.program_id(1)
    batch, head = (pair // HEADS).to(tl.int64), (pair % HEADS).to(tl.int64)
    begin = (tl.num_programs(0) - 1 - tl.program_id(0)) * M
    q_base = q_ptr + batch * q_batch + head * q_head
    k_base = k_ptr + batch * k_batch + (head // GROUP) * k_head
    q = load_keys(q_base, begin, new, q_row, DIM, BLOCK_DIM, M, UPCAST)
    row, first = rows - new + begin + tl.arange(0, M), tl.load(first_ptr + batch)
    end = rows - new + tl.minimum(begin + M, new)
    # Keys up to the tile's first row are seen by all of its rows.
    middle = first + tl.maximum(rows - new + begin + 1 - first, 0) // N * N
    top, total = tl.full([M], float("-inf"), tl.float32), tl.zeros([M], tl.float32)
    for key in range(first, middle, N):
        k = load_keys(k_base, key, end, k_row, DIM, BLOCK_DIM, N, UPCAST)
        score = tl.dot(q, tl.trans(k), input_precision="ieee") * scale_log2
        new_top = tl.maximum(top, tl.max(score, 1))
        total = total * tl.exp2(top - new_top) + tl.sum(tl.exp2(score - new_top[:, None]), 1)
        top = new_top
    for key in range(middle, end, N):
        k = load_keys(k_base, key, end, k_row, DIM, BLOCK_DIM, N, UPCAST)
        score = tl.dot(q, tl.trans(k), input_precision="ieee") * scale_log2
        score = tl.where((key + tl.arange(0, N))[None, :] <= row[:, None], score, float("-inf"))
        new_top = tl.maximum(top, tl.max(score, 1))
        base = tl.where(new_top == float("-inf"), 0.0, new_top)
        total = total * tl.exp2(top - base) + tl.sum(tl.exp2(score - base[:, None]), 1)
        top = new_top
    lse = tl.where(total == 0.0, float("-inf"), top + tl.log2(tl.where(total == 0.0, 1.0, total)))
    place = begin + tl.arange(0, M)
    tl.store(lse_ptr + pair.to(tl.int64) * new + place, lse, mask=place < new)


@triton.jit
def column_sums_kernel(q_ptr, k_ptr, first_ptr, lse_ptr, sums_ptr, scale_log2, new, rows, q_batch, q_head, q_row,
                       k_batch, k_head, k_row, KV_HEADS: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr,
                       BLOCK_DIM: tl.constexpr, M: tl.constexpr, N: tl.constexpr, UPCAST: tl.constexpr):  # fmt: skip
    """Sum the attention that one tile of keys gets from all rows and heads of its group; the grid is (tiles, B * G).

    Args:
        q_ptr: Queries.
        k_ptr: Keys.
        first_ptr: (B,) first row that is no padding.
        lse_ptr: (B, H, T) log2 of the rows' sums.
        sums_ptr: (B, G, S), contiguous.
        scale_log2: Factor of the scores, times log2(e).
        new: T.
        rows: S.
        q_batch: Stride of the queries.
        q_head: Stride of the queries.
        q_row: Stride of the queries.
        k_batch: Stride of the keys.
        k_head: Stride of the keys.
        k_row: Stride of the keys.
        KV_HEADS: G.
        GROUP: J.
        DIM: D.
        BLOCK_DIM: Power of two, at least 16 and D.
        M: Query rows of a tile.
        N: Keys of a tile.
        UPCAST: Cast to float32 after each load.
    """
    pair, begin = tl.program_id(1), tl.program_id(0) * N
    batch, group = (pair // KV_HEADS).to(tl.int64), (pair % KV_HEADS).to(tl.int64)
    first, key = tl.load(first_ptr + batch), begin + tl.arange(0, N)
    k_base = k_ptr + batch * k_batch + group * k_head
    k = load_keys(k_base, begin, rows, k_row, DIM, BLOCK_DIM, N, UPCAST)
    sums = tl.zeros([M, N], tl.float32)
    near = tl.maximum(begin - (rows - new), 0)
    # Queries from here on see all keys of the tile.
    middle = tl.minimum(near + tl.cdiv(tl.maximum(begin + N - (rows - new) - near, 0), M) * M, new)
    for member in range(GROUP):
        head = group * GROUP + member
        q_base = q_ptr + batch * q_batch + head * q_head
        lse_base = lse_ptr + (batch * KV_HEADS * GROUP + head) * new
        for query in range(near, middle, M):
            at = query + tl.arange(0, M)
            q = load_keys(q_base, query, new, q_row, DIM, BLOCK_DIM, M, UPCAST)
            lse = tl.load(lse_base + at, mask=at < new, other=float("-inf"))
            lse = tl.where(lse == float("-inf"), float("inf"), lse)
            score = tl.dot(q, tl.trans(k), input_precision="ieee") * scale_log2
            score = tl.where(key[None, :] <= (rows - new + at)[:, None], score, float("-inf"))
            sums += tl.exp2(score - lse[:, None])
        for query in range(middle, new, M):
            at = query + tl.arange(0, M)
            q = load_keys(q_base, query, new, q_row, DIM, BLOCK_DIM, M, UPCAST)
            lse = tl.load(lse_base + at, mask=at < new, other=float("-inf"))
            lse = tl.where(lse == float("-inf"), float("inf"), lse)
            score = tl.dot(q, tl.trans(k), input_precision="ieee") * scale_log2
            sums += tl.exp2(score - lse[:, None])
    column = tl.where(key >= first, tl.sum(sums, 0), 0.0)
    tl.store(sums_ptr + pair.to(tl.int64) * rows + key, column, mask=key < rows)


def column_sums(
    q_BHTD: torch.Tensor, k_BGSD: torch.Tensor, first_B: torch.Tensor, scale: float, plan: Tiles | None = None
) -> torch.Tensor:
    """Sum as the eager twin does, in memory that grows with S.

    Args:
        q_BHTD: (B, H, T, D) queries; any strides, the last dim contiguous.
        k_BGSD: (B, G, S, D) keys; any strides, the last dim contiguous.
        first_B: (B,) int32, first row that is no padding.
        scale: Factor of the scores.
        plan: How to cut the work; chosen from the shape if absent.

    Returns:
        (B, G, S) float32.

    Raises:
        ValueError: If the last dim of a tensor is not contiguous.
    """
    lse_BHT = _row_sums(q_BHTD, k_BGSD, first_B, scale, plan)
    sums_BGS = torch.empty(k_BGSD.shape[:3], dtype=torch.float32, device=k_BGSD.device)
    how = _shape(q_BHTD, k_BGSD, plan)
    column_sums_kernel[(triton.cdiv(k_BGSD.shape[2], how["N"]), k_BGSD.shape[0] * k_BGSD.shape[1])](
        q_BHTD, k_BGSD, first_B, lse_BHT, sums_BGS, scale * LOG2_E, q_BHTD.shape[2], k_BGSD.shape[2],
        *q_BHTD.stride()[:3], *k_BGSD.stride()[:3], KV_HEADS=k_BGSD.shape[1], **how,
    )  # fmt: skip
    return sums_BGS


def row_sums(
    q_BHTD: torch.Tensor, k_BGSD: torch.Tensor, first_B: torch.Tensor, scale: float, plan: Tiles | None = None
) -> torch.Tensor:
    """Sum rows as the eager twin does.

    Args:
        q_BHTD: (B, H, T, D) queries.
        k_BGSD: (B, G, S, D) keys.
        first_B: (B,) int32, first row that is no padding.
        scale: Factor of the scores.
        plan: How to cut the work; chosen from the shape if absent.

    Returns:
        (B, H, T) float32 log of the sums; -inf for padding.

    Raises:
        ValueError: If the last dim of a tensor is not contiguous.
    """
    return _row_sums(q_BHTD, k_BGSD, first_B, scale, plan) * math.log(2)


def _row_sums(q_BHTD, k_BGSD, first_B, scale, plan):
    check_contiguous_rows(q_BHTD, k_BGSD)
    batch, heads, new, _ = q_BHTD.shape
    lse_BHT = torch.empty(batch, heads, new, dtype=torch.float32, device=q_BHTD.device)
    how = _shape(q_BHTD, k_BGSD, plan)
    row_sums_kernel[(triton.cdiv(new, how["M"]), batch * heads)](
        q_BHTD, k_BGSD, first_B, lse_BHT, scale * LOG2_E, new, k_BGSD.shape[2], *q_BHTD.stride()[:3],
        *k_BGSD.stride()[:3], HEADS=heads, **how,
    )  # fmt: skip
    return lse_BHT


def _shape(q_BHTD: torch.Tensor, k_BGSD: torch.Tensor, plan: Tiles | None) -> dict[str, int | bool]:
    dim = q_BHTD.shape[3]
    plan = plan or tiles_of(TILES, q_BHTD.element_size(), dim)
    return {
        "GROUP": q_BHTD.shape[1] // k_BGSD.shape[1], "DIM": dim, "BLOCK_DIM": max(16, power_of_2(dim)),
        "M": plan.queries, "N": plan.keys, "UPCAST": upcasts(q_BHTD.dtype), "num_warps": plan.num_warps,
        "num_stages": plan.num_stages,
    }  # fmt: skip
