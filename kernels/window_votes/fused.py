"""Votes of a window in three short kernels: sums of rows by parts of the text, votes, pooling.

Shape legend: B batch, H query heads, G KV heads, J = H / G, W rows of the window (the last W of the S key rows), S key
rows, D head dim, M rows of a tile of the window, JP = J padded to a power of two, L = M * JP lines, N keys of a tile,
X parts of the text.
"""

import torch
import triton
import triton.language as tl

from ..dense_decode.fused import LOG2_E, check_contiguous_rows
from ..grouped_rows.fused import load_keys, load_lines
from ..interpreter import upcasts
from ..many_rows import Tiles, tiles_of
from ..tiling import choose_splits, multiprocessors, power_of_2
from .eager import Group, Pooling, check_words

LINES = Tiles(128, 128, 8, 2)


@triton.jit
def vote_shares_kernel(q_ptr, k_ptr, first_ptr, top_ptr, total_ptr, scale_log2, window, rows, parts, q_batch, q_head,
                       q_row, k_batch, k_head, k_row, KV_HEADS: tl.constexpr, GROUP: tl.constexpr,
                       DIM: tl.constexpr, BLOCK_DIM: tl.constexpr, M: tl.constexpr, JP: tl.constexpr,
                       N: tl.constexpr, TILES: tl.constexpr, UPCAST: tl.constexpr):  # fmt: skip
    """Sum the weights of the window's rows over one part of the text; the grid is (X, row tiles, B * G).

    Args:
        q_ptr: Queries.
        k_ptr: Keys.
        first_ptr: (B,) first row that is no padding.
        top_ptr: (B * G, X, lines) largest scores, in units of log2.
        total_ptr: (B * G, X, lines) sums of weights over exp2(top).
        scale_log2: Factor of the scores, times log2(e).
        window: W.
        rows: S.
        parts: X.
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
        M: Rows of a tile of the window.
        JP: Lines of a row.
        N: Keys of a tile.
        TILES: Tiles of a part.
        UPCAST: Cast to float32 after each load.
    """
    part, begin, pair = tl.program_id(0), tl.program_id(1) * M, tl.program_id(2)
    batch, group = (pair // KV_HEADS).to(tl.int64), (pair % KV_HEADS).to(tl.int64)
    q_base = q_ptr + batch * q_batch + group * GROUP * q_head
    q = load_lines(q_base, begin, window, q_head, q_row, DIM, BLOCK_DIM, M, JP, GROUP, UPCAST)
    k_base, first = k_ptr + batch * k_batch + group * k_head, tl.load(first_ptr + batch)
    row = rows - window + begin + tl.arange(0, M * JP) // JP
    end = tl.minimum((part + 1) * TILES * N, rows)
    top, total = tl.full([M * JP], float("-inf"), tl.float32), tl.zeros([M * JP], tl.float32)
    for key in range(part * TILES * N, end, N):
        k = load_keys(k_base, key, end, k_row, DIM, BLOCK_DIM, N, UPCAST)
        at = key + tl.arange(0, N)
        seen = (at >= first)[None, :] & (at[None, :] <= row[:, None])
        score = tl.where(seen, tl.dot(q, tl.trans(k), input_precision="ieee") * scale_log2, float("-inf"))
        new_top = tl.maximum(top, tl.max(score, 1))
        base = tl.where(new_top == float("-inf"), 0.0, new_top)
        total = total * tl.exp2(top - base) + tl.sum(tl.exp2(score - base[:, None]), 1)
        top = new_top
    line = begin * JP + tl.arange(0, M * JP)
    place = (pair.to(tl.int64) * parts + part) * (tl.num_programs(1) * M * JP) + line
    tl.store(top_ptr + place, top)
    tl.store(total_ptr + place, total)


@triton.jit
def join_parts_kernel(top_ptr, total_ptr, lse_ptr, parts, lines, N: tl.constexpr):
    """Join the sums of all parts of some lines; the grid is (tiles of lines, B * G).

    Args:
        top_ptr: (B * G, X, lines) largest scores, in units of log2.
        total_ptr: (B * G, X, lines) sums of weights over exp2(top).
        lse_ptr: (B * G, lines) log2 of the sums, +inf for lines that see nothing.
        parts: X.
        lines: Lines of a group.
        N: Lines of a tile.
    """
    line, pair = tl.program_id(0) * N + tl.arange(0, N), tl.program_id(1).to(tl.int64)
    top, total = tl.full([N], float("-inf"), tl.float32), tl.zeros([N], tl.float32)
    for part in range(parts):
        place = (pair * parts + part) * lines + line
        other = tl.load(top_ptr + place, mask=line < lines, other=float("-inf"))
        new_top = tl.maximum(top, other)
        base = tl.where(new_top == float("-inf"), 0.0, new_top)
        total = total * tl.exp2(top - base)
        total += tl.load(total_ptr + place, mask=line < lines, other=0.0) * tl.exp2(other - base)
        top = new_top
    lse = tl.where(total == 0.0, float("inf"), top + tl.log2(tl.where(total == 0.0, 1.0, total)))
    tl.store(lse_ptr + pair * lines + line, lse, mask=line < lines)


@triton.jit
def votes_kernel(q_ptr, k_ptr, first_ptr, width_ptr, lse_ptr, votes_ptr, scale_log2, window, rows, lines, q_batch,
                 q_head, q_row, k_batch, k_head, k_row, KV_HEADS: tl.constexpr, GROUP: tl.constexpr,
                 DIM: tl.constexpr, BLOCK_DIM: tl.constexpr, M: tl.constexpr, JP: tl.constexpr, N: tl.constexpr,
                 JOIN: tl.constexpr, UPCAST: tl.constexpr):  # fmt: skip
    """Sum the votes that one tile of keys gets, and join the heads; the grid is (key tiles, B * G).

    Args:
        q_ptr: Queries.
        k_ptr: Keys.
        first_ptr: (B,) first row that is no padding.
        width_ptr: (B,) how many of the last rows vote; 0 for all.
        lse_ptr: (B * G, lines) log2 of the rows' sums of weights, +inf for lines that do not exist.
        votes_ptr: (B, G, S), contiguous.
        scale_log2: Factor of the scores, times log2(e).
        window: W.
        rows: S.
        lines: Lines of a group.
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
        M: Rows of a tile of the window.
        JP: Lines of a row.
        N: Keys of a tile.
        JOIN: "mean", "max" or "sum".
        UPCAST: Cast to float32 after each load.
    """
    key, pair = tl.program_id(0) * N, tl.program_id(1)
    batch, group = (pair // KV_HEADS).to(tl.int64), (pair % KV_HEADS).to(tl.int64)
    q_base = q_ptr + batch * q_batch + group * GROUP * q_head
    k_base, first = k_ptr + batch * k_batch + group * k_head, tl.load(first_ptr + batch)
    width, at, line = tl.load(width_ptr + batch), key + tl.arange(0, N), tl.arange(0, M * JP)
    voting = rows - tl.where(width > 0, width, window)
    k = load_keys(k_base, key, rows, k_row, DIM, BLOCK_DIM, N, UPCAST)
    votes = tl.zeros([JP, N], tl.float32)
    for begin in range(0, window, M):
        q = load_lines(q_base, begin, window, q_head, q_row, DIM, BLOCK_DIM, M, JP, GROUP, UPCAST)
        row = rows - window + begin + line // JP
        lse = tl.load(lse_ptr + pair.to(tl.int64) * lines + begin * JP + line)
        score = tl.dot(q, tl.trans(k), input_precision="ieee") * scale_log2
        voter = (row >= voting) & (row < rows) & (line % JP < GROUP)
        seen = (at >= first)[None, :] & (at[None, :] <= row[:, None]) & voter[:, None]
        weight = tl.exp2(tl.where(seen, score - lse[:, None], float("-inf")))
        votes += tl.sum(tl.reshape(weight, (M, JP, N)), 0)
    if JOIN == "max":  # a weight is never below the zero of the lines that only pad
        joined = tl.max(votes, 0)
    else:
        joined = tl.sum(votes, 0)
        if JOIN == "mean":
            joined = joined / GROUP
    joined = tl.where(at >= rows - width, 0.0, joined)
    tl.store(votes_ptr + pair.to(tl.int64) * rows + at, joined, mask=at < rows)


@triton.jit
def pool_kernel(votes_ptr, width_ptr, out_ptr, rows, groups, KERNEL: tl.constexpr, MAX: tl.constexpr,
                N: tl.constexpr):  # fmt: skip
    """Pool the votes along the text; the grid is (tiles, B * G).

    Args:
        votes_ptr: (B, G, S).
        width_ptr: (B,) how many of the last rows vote.
        out_ptr: (B, G, S).
        rows: S.
        groups: G.
        KERNEL: Width of the pooling.
        MAX: Whether the largest is taken, not the mean.
        N: Keys of a tile.
    """
    pair, at = tl.program_id(1), tl.program_id(0) * N + tl.arange(0, N)
    base = votes_ptr + pair.to(tl.int64) * rows
    pooled = tl.zeros([N], tl.float32)
    for step in tl.static_range(KERNEL):
        place = at + step - KERNEL // 2
        vote = tl.load(base + place, mask=(place >= 0) & (place < rows), other=0.0)
        pooled = tl.maximum(pooled, vote) if MAX else pooled + vote
    if not MAX:
        pooled = pooled / KERNEL
    width = tl.load(width_ptr + pair // groups)
    pooled = tl.where(at >= rows - width, 0.0, pooled)
    tl.store(out_ptr + pair.to(tl.int64) * rows + at, pooled, mask=at < rows)


def window_votes(
    q_BHWD: torch.Tensor,
    k_BGSD: torch.Tensor,
    first_B: torch.Tensor,
    width_B: torch.Tensor,
    scale: float,
    group: Group,
    kernel: int,
    pooling: Pooling,
    plan: Tiles | None = None,
) -> torch.Tensor:
    """Vote as the eager twin does, in memory that grows with S.

    Args:
        q_BHWD: (B, H, W, D) queries; any strides, the last dim contiguous.
        k_BGSD: (B, G, S, D) keys; any strides, the last dim contiguous.
        first_B: (B,) int32, first row that is no padding.
        width_B: (B,) int32, how many of the last rows vote; 0 for all.
        scale: Factor of the scores.
        group: "mean", "max" or "sum".
        kernel: Odd width of the pooling.
        pooling: "max" or "avg".
        plan: How to cut the work, `queries` being lines; chosen from the shape if absent.

    Returns:
        (B, G, S) float32.

    Raises:
        ValueError: As the eager twin; or if the last dim of a tensor is not contiguous.
    """
    check_words(group, kernel, pooling)
    check_contiguous_rows(q_BHWD, k_BGSD)
    groups, rows = k_BGSD.shape[1:3]
    plan = plan or tiles_of(LINES, q_BHWD.element_size(), q_BHWD.shape[3])
    how, width_B = _shape(q_BHWD, k_BGSD, plan), width_B.to(torch.int32)
    lse_BGL = _row_sums(q_BHWD, k_BGSD, first_B, scale, how)
    pairs = k_BGSD.shape[0] * groups
    votes_BGS, out_BGS = (torch.empty(k_BGSD.shape[:3], dtype=torch.float32, device=k_BGSD.device) for _ in range(2))
    votes_kernel[(triton.cdiv(rows, plan.keys), pairs)](
        q_BHWD, k_BGSD, first_B, width_B, lse_BGL, votes_BGS, scale * LOG2_E, q_BHWD.shape[2], rows,
        lse_BGL.shape[1], *q_BHWD.stride()[:3], *k_BGSD.stride()[:3], KV_HEADS=groups, JOIN=group, **how,
    )  # fmt: skip
    pool_kernel[(triton.cdiv(rows, 1024), pairs)](
        votes_BGS, width_B, out_BGS, rows, groups, KERNEL=kernel, MAX=int(pooling == "max"), N=1024
    )
    return out_BGS


def _row_sums(q_BHWD, k_BGSD, first_B, scale, how):
    """Log2 of the sums of all lines (B * G, lines); +inf where a line does not exist or sees nothing."""
    batch, groups, rows, _ = k_BGSD.shape
    window, device = q_BHWD.shape[2], q_BHWD.device
    tiles, row_tiles = triton.cdiv(rows, how["N"]), triton.cdiv(window, how["M"])
    parts = choose_splits(batch * groups * row_tiles, tiles, multiprocessors(device))
    each = triton.cdiv(tiles, parts)
    parts, lines = triton.cdiv(tiles, each), row_tiles * how["M"] * how["JP"]
    top, total = (torch.empty(batch * groups, parts, lines, dtype=torch.float32, device=device) for _ in range(2))
    vote_shares_kernel[(parts, row_tiles, batch * groups)](
        q_BHWD, k_BGSD, first_B, top, total, scale * LOG2_E, window, rows, parts, *q_BHWD.stride()[:3],
        *k_BGSD.stride()[:3], KV_HEADS=groups, TILES=each, **how,
    )  # fmt: skip
    lse = torch.empty(batch * groups, lines, dtype=torch.float32, device=device)
    join_parts_kernel[(triton.cdiv(lines, 32), batch * groups)](top, total, lse, parts, lines, N=32, num_warps=1)
    return lse


def _shape(q_BHWD, k_BGSD, plan):
    heads, groups, dim = q_BHWD.shape[1], k_BGSD.shape[1], q_BHWD.shape[3]
    padded = power_of_2(heads // groups)
    tokens = min(max(1, plan.queries // padded), max(power_of_2(q_BHWD.shape[2]), -(-16 // padded)))
    return {
        "GROUP": heads // groups, "DIM": dim, "BLOCK_DIM": max(16, power_of_2(dim)), "M": tokens, "JP": padded,
        "N": plan.keys, "UPCAST": upcasts(q_BHWD.dtype), "num_warps": plan.num_warps, "num_stages": plan.num_stages,
    }  # fmt: skip
